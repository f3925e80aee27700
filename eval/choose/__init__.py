"""The stage `choose`: which kept checkpoint, at which weight. Screening on few images first, the best few on all."""
