"""`triops bench`: the measuring floor's own command, found by its name, because nothing here may know that floor."""

import importlib

command = importlib.import_module("triops.bench.cli").bench
