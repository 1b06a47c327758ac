"""Print the lowest version of each package that pyproject.toml asks for, as constraints for pip: `>=X` made `==X`."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
for requirement in sorted({*project["dependencies"], *project["optional-dependencies"]["dev"]}):
    print(re.sub(r"\[.*?\]", "", requirement).replace(">=", "==", 1))  # constraints know no extras
