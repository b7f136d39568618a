# Everything a fresh machine needs is in two commands: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SHIPPED := $${OSDFACE_HOME:-.osdface}/shipped
# Not in the lock: torch, whose build, and the CUDA packages that it pins itself, depend on the machine; and bitsandbytes,
# which pyiqa wants for a language model that nothing here uses, and every process would spend 2 s on importing.
TORCH := torch==2.14.1 torchvision==0.29.1
LEFT_OUT := bitsandbytes torch torchvision triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cccl \
	nvidia-cuda-cupti nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand \
	nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx

.PHONY: help install demo lint test test-full chaos gpu-check bench quality docs wheel-check lock clean

help:  ## What there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed  ## .venv with every extra, from the lock, and .venv/bin/osdface

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch, then everything else: a few minutes"
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@echo "compiling DeepSpeed's communication op, once"
	@rm -f $${TORCH_EXTENSIONS_DIR:-$$HOME/.cache/torch_extensions}/*/deepspeed_shm_comm/lock  # of a build that was killed
	PATH="$(CURDIR)/$(BIN):$$PATH" DS_ACCELERATOR=cpu $(BIN)/python -c \
		'from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder; ShareMemCommBuilder().load(verbose=False)' >$(VENV)/op.log 2>&1 \
		|| { tail -5 $(VENV)/op.log; echo "DeepSpeed's op does not compile: is a C++ compiler installed?"; exit 1; }
	touch $@

demo: install  ## The main job, from procedural faces to two restored photographs
	$(BIN)/osdface demo

lint: install  ## Style, types, and the one direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: install  ## The tests, without the slow ones
	$(BIN)/pytest

test-full: install  ## The tests with the slow ones
	$(BIN)/pytest -m "not chaos and not gpu"

chaos: install  ## Tests that kill things
	$(BIN)/pytest -m chaos

gpu-check: install  ## The tests that need CUDA
	$(BIN)/pytest -m gpu -s

bench: install  ## The benchmarks, to benchmarks/results: three quarters of an hour
	$(BIN)/python -m benchmarks.degrade
	$(BIN)/python -m benchmarks.synthesize
	$(BIN)/python -m benchmarks.restore --rounds 1
	$(BIN)/python -m benchmarks.train_step
	$(BIN)/python -m benchmarks.serve

quality: install  ## The bundle that ships from scratch, and its comparison with an L1 UNet: hours
	$(BIN)/osdface run jobs/configs/shipped/weights.yaml
	$(BIN)/python -m benchmarks.quality --model $(SHIPPED)/model --data $(SHIPPED)/pairs --test $(SHIPPED)/held_out --work $(SHIPPED)/quality

docs: install  ## The documentation as a site, to build/site; a broken link fails it
	$(BIN)/mkdocs build --quiet

wheel-check: install  ## Build the wheel, look into it, and run its command in an environment of its own
	$(BIN)/pytest -m full tests/test_wheel.py

lock: install  ## Resolve requirements.lock anew from pyproject.toml
	$(BIN)/pip install --quiet uv
	echo $(TORCH) | tr ' ' '\n' | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--no-annotate --all-extras --constraints - $(addprefix --no-emit-package ,$(LEFT_OUT)) pyproject.toml -o requirements.lock

clean:  ## Remove .venv and what commands made in .osdface
	rm -rf $(VENV) .osdface
