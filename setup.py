from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
DOCS = [f"{name} ; python_version >= '3.11'" for name in ("sphinx", "furo", "myst-parser", "sphinx-gallery")]
PACKAGES = ["engine", "policies", "training", "benchmarks"]

setup(
    name="evenflow",
    version="0.1.0",
    description=(
        "Train controllers through differentiable physics, and choose, compare and diagnose "
        "how the gradient flows back through time"
    ),
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The Evenflow developers",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=[*PACKAGES, *(f"{package}.*" for package in PACKAGES)]),
    py_modules=["evenflow"],
    entry_points={"console_scripts": ["evenflow = evenflow:main"]},
    install_requires=[
        "taichi==1.7.4",  # its private launch path is used
        "torch>=2.4",
        "filelock",
        "numpy",
        "scipy",
        "safetensors",
        "pyyaml",
        "tyro",
        "rich",
        "matplotlib",
        "imageio",
        "imageio-ffmpeg",
    ],
    extras_require={
        "dev": [
            *("pytest", "pytest-xdist", "ruff", "pyright[nodejs]"),
            *("gymnasium>=1.1", "onnx", "onnxscript", "onnxruntime", "tensorboard"),
            *DOCS,
        ],
        "docs": DOCS,
        "export": ["onnx", "onnxscript"],
        "gym": ["gymnasium>=1.1", "stable-baselines3"],
        "peers": ["jax", "warp-lang"],
        "jax-md": ["jax-md"],
        "ray": ["ray"],
        "tensorboard": ["tensorboard"],
        "mlflow": ["mlflow"],
        "wandb": ["wandb"],
        "trackio": ["trackio"],
        "optuna": ["optuna"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Operating System :: MacOS",
        "Operating System :: Microsoft :: Windows",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Physics",
    ],
)
