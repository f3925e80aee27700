"""The pipeline's own stages, one file each; each exports `STAGE`. `orchestrate.STAGES` puts them in order."""
