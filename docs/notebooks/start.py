"""The cell of both notebooks that finds the repository. docs/write_notebooks.py puts the version and the packages in."""

# %%
import importlib.metadata
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

VERSION = "@version@"  # of tensorlite, that this notebook was written for
PACKAGES = [
    "@packages@",
]
HERE = Path.cwd()
ASK = f"""\
This notebook needs the repository of tensorlite {VERSION}. It is not above this notebook's folder, and not installed.
Upload a zip of the repository, and run this cell again:
  Colab    the folder symbol on the left, then the upload symbol
  Kaggle   Add Input, Upload
  Jupyter  the upload button of the file browser, into the folder of this notebook
To make the zip, in a copy of the repository:  git archive --output tensorlite.zip HEAD"""


class Stop(Exception):
    """Ends the run with a message, and without a traceback."""

    def _render_traceback_(self):  # for Jupyter
        return [str(self)]


def find_repository():
    """Return its folder, above this one, below it, or among Kaggle's inputs; None if there is none of this version."""
    above = [HERE, *HERE.parents]
    programs = [*HERE.glob("*/train.py"), *HERE.glob("*/*/train.py"), *HERE.glob("../input/**/train.py")]
    for folder in [*above, *(program.parent for program in programs)]:
        version = folder / "tensorlite" / "version.py"
        if version.is_file() and f'"{VERSION}"' in version.read_text():
            return folder.resolve()
    return None


def unpack_zip():
    """Unpack an uploaded zip of the repository; return whether there is one."""
    for path in [*HERE.glob("*.zip"), *HERE.glob("../input/**/*.zip")]:
        if not zipfile.is_zipfile(path):
            raise Stop(f"{path.name} is not a complete zip. Upload it again, and run this cell again.")
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("tensorlite/version.py") for name in archive.namelist()):
                archive.extractall(path.stem)
                return True
    return False


def installed_version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def is_installed(package):
    name, _, least = package.partition(">=")
    found, needed = ([int(n) for n in re.findall(r"\d+", text)] for text in (installed_version(name), least))
    return found >= needed


def install(packages):
    """Let pip install packages. Where an older one is in use already, the kernel has to start again."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", *packages]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise Stop(f"pip could not install {', '.join(packages)}:\n{done.stdout}")
    if any(package.partition(">=")[0] in sys.modules for package in packages):
        raise Stop("Packages in use were replaced. Restart the kernel (in Colab: Runtime, Restart session), then begin again here.")


repository = find_repository()
if repository is None and installed_version("tensorlite") != VERSION:
    if not unpack_zip():
        raise Stop(ASK)
    repository = find_repository()
    if repository is None:
        raise Stop(f"The zip has another version of the repository. This notebook is for {VERSION}; take the one in the zip.")
if repository is not None:
    sys.path.insert(0, str(repository))
    os.environ["PYTHONPATH"] = str(repository)  # for the programs that cells start
missing = [package for package in PACKAGES if not is_installed(package)]
if missing:
    print(f"installing {', '.join(missing)}")
    install(missing)
print(f"tensorlite {VERSION}: {repository or 'installed'}")
