"""Many pairs of TOMLs through brushset/kohya/probe.py in one process, since sd-scripts takes seconds to import.

For tests alone, in a process of its own: `python probe_cases.py SD_SCRIPTS_DIR CASES.json OUT.json`. A case is a list of
words for train_network.py. The probe's own functions do the work; what sd-scripts keeps in class attributes between
trainings is put back to nothing in between.
"""

import contextlib
import importlib
import importlib.util
import io
import json
import sys
from pathlib import Path

PROBE = Path(__file__).parent.parent / "brushset" / "kohya" / "probe.py"

folder, cases_file, out = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
spec = importlib.util.spec_from_file_location("probe", PROBE)
probe = importlib.util.module_from_spec(spec)
spec.loader.exec_module(probe)
sys.path[0] = str(folder)
answers = []
with contextlib.redirect_stdout(io.StringIO()):
    train_network = importlib.import_module("train_network")
    train_util = importlib.import_module("library.train_util")
    strategies = importlib.import_module("library.strategy_base")
    for words in json.loads(cases_file.read_text()):
        for name in ("Tokenize", "TextEncoding", "TextEncoderOutputsCaching", "LatentsCaching"):
            getattr(strategies, f"{name}Strategy")._strategy = None
        sys.argv = ["train_network.py", *words]
        parser = train_network.setup_parser()
        args = train_util.read_config_from_file(parser.parse_args(), parser)
        answers.append(probe._probe(train_network, train_util, args, 1))
out.write_text(json.dumps(answers, default=str))
