# Everything a checkout needs: `make` lists the targets. The only thing asked of the machine is Python 3.11 or newer.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BENCH_INSTALLED := $(VENV)/.bench-installed
CUDA_VENV := .venv-cuda
CUDA_INSTALLED := $(CUDA_VENV)/.installed
MLFLOW_VENV := .venv-mlflow
MLFLOW_INSTALLED := $(MLFLOW_VENV)/.installed
MLFLOW := $(shell sed -n 's/^mlflow-skinny==/mlflow==/p' constraints.txt)
TYPED := .cache/typed
PACKAGES := train cluster launcher benchmarks
TORCH := $(shell grep '^torch==' constraints.txt)
# The newest torch whose CUDA build is tested; on the machines of the other targets torch may be a CPU build.
CUDA_TORCH := torch==2.14.1
PIP_INSTALL := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test test-quick test-long test-faults test-gpu test-nullgpu nullgpu-environment mlflow-environment gpu-proof gpu-wheels test-hosts test-slurm check-kuberay test-real check bench test-timing llama-cpp wheel clean

# What `make test` runs: each of the other markers has a target of its own.
EVERYDAY := not gpu and not nullgpu and not hosts and not slurm and not faults and not timing and not real and not long
BESIDE := -n 2 --dist loadfile

# How many random kills `make test-faults` makes: of the store's writers, and of ranks and drivers of whole runs.
KILLS := 180
RUN_KILLS := 20

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## fine-tune the real Gemma 3 270M with LoRA on question-answer pairs, two workers on this machine
	@echo "== demo: gemfleet train examples/demo.yaml"
	$(BIN)/gemfleet train examples/demo.yaml

test: check ## check, then every test but those of the targets below and those that need a GPU
	@echo "== tests"
	$(BIN)/python -m pytest $(BESIDE) -m '$(EVERYDAY) and not slow'
	$(BIN)/python -m pytest -m '$(EVERYDAY) and slow' --durations=10

test-quick: $(INSTALLED) ## the quick ones of them: no Ray cluster, no real model
	@echo "== quick tests"
	$(BIN)/python -m pytest $(BESIDE) -m '$(EVERYDAY) and not slow'

test-long: $(INSTALLED) ## proofs of minutes: all strategies on four ranks, in all pairs, through Ray; lean loading; the real model quantised; S3
	@echo "== long tests"
	$(BIN)/python -m pytest -m long --durations=10

test-faults: $(INSTALLED) ## cause faults in whole runs and in the store; print what each cost (root for the full disk and for hosts)
	@echo "== faults"
	GEMFLEET_KILLS=$(KILLS) GEMFLEET_RUN_KILLS=$(RUN_KILLS) $(BIN)/python -m pytest --durations=10 tests/faults tests/test_object_faults.py tests/cluster/checkpoint_store/test_commit.py tests/cluster/registry/test_run_recorder.py tests/launcher/runs/test_repair.py tests/launcher/runs/test_prune.py tests/launcher/run/batch_search/test_batch_on_ray.py tests/train/batch_finder/test_probes.py tests/launcher/run/training/test_elastic.py tests/hosts/test_network_faults.py

test-timing: $(BENCH_INSTALLED) ## proofs of speed: scaling, launch, `bench compare` on a build slowed on purpose
	@echo "== timing"
	$(BIN)/python -m pytest -m timing --durations=10 tests/benchmarks tests/launcher/api/run_page

# llama.cpp's converters, as the sources of llama-cpp-python have them. They need no compiler.
llama-cpp: $(INSTALLED) ## llama.cpp's converters into .cache/llama.cpp, for the tests of output.formats: gguf
	$(PIP_INSTALL) --quiet 'sentencepiece>=0.2'
	mkdir -p .cache/llama.cpp
	$(BIN)/python -m pip download --quiet --no-deps --no-binary llama-cpp-python --dest .cache llama-cpp-python
	tar -xzf .cache/llama_cpp_python-*.tar.gz -C .cache/llama.cpp --strip-components 3 --wildcards '*/vendor/llama.cpp/convert_*.py' '*/vendor/llama.cpp/conversion/*.py' '*/vendor/llama.cpp/gguf-py/*.py'

test-gpu: $(INSTALLED) ## the tests of the CUDA path, on one GPU (with the gpu extra: Liger's kernels too)
	@echo "== tests on a GPU"
	$(BIN)/python -m pytest -m gpu --durations=10

test-nullgpu: $(CUDA_INSTALLED) ## the CUDA path on pretended GPUs: torch's CUDA build (7 GB, once), no GPU, kernels that do nothing
	@echo "== tests on pretended GPUs"
	$(CUDA_VENV)/bin/python -m pytest -n 2 --dist loadfile -m 'nullgpu or triton' tests/nullgpu tests/train/kernels/test_liger.py

nullgpu-environment: $(CUDA_INSTALLED)

mlflow-environment: $(MLFLOW_INSTALLED) ## a real MLflow server for its test, in .venv-mlflow: it does not fit beside our own packages

# What `make gpu-proof` takes: options of the proof (ARGS), another Python (PYTHON), a folder of wheels it lacks (WHEELS).
ARGS :=
GPU_WHEELS := .cache/gpu-wheels

gpu-proof: ## prove and measure the CUDA path on one GPU within 8 minutes; docs/gpu-proof.md
	@echo "== the proof on a GPU"
	PYTHON='$(PYTHON)' WHEELS='$(WHEELS)' .ci/gpu-proof $(ARGS)

gpu-wheels: $(INSTALLED) ## collect what a machine with torch and transformers lacks for the proof, in .cache/gpu-wheels
	PYTHONPATH=tests $(BIN)/python -m support.gpu_proof.wheels $(GPU_WHEELS) $(ARGS)

test-slurm: $(INSTALLED) ## a real Slurm over two hosts with private disks (root; Debian: slurm-wlm, munge)
	@echo "== tests on Slurm"
	$(BIN)/python -m pytest -m slurm --durations=5 tests/hosts/test_slurm.py

check-kuberay: $(INSTALLED) ## the manifests against KubeRay's own definitions: make check-kuberay CRDS=folder, from its helm-chart/kuberay-operator/crds
	GEMFLEET_KUBERAY_CRDS="$(CRDS)" $(BIN)/python -m pytest tests/cluster/bringup/test_kuberay_crds.py

test-real: $(INSTALLED) ## with the real 270M: the platform's request as it stands, and chats whose answers end by themselves
	@echo "== the platform's request with the real model"
	$(BIN)/python -m pytest -m real --durations=10 -rP tests/launcher/config/platform/test_platform_real.py tests/launcher/result/test_chat_real.py

test-hosts: $(INSTALLED) ## the tests on clusters of several hosts, but for their faults (network namespaces; needs root)
	@echo "== tests on several hosts"
	$(BIN)/python -m pytest -m 'hosts and not faults' --durations=10 tests/hosts

check: $(INSTALLED) $(PACKAGES:%=$(TYPED)/gemfleet/%) ## style, types, and who may import whom
	@echo "== style"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@echo "== types"
	MYPYPATH=$(TYPED) $(BIN)/mypy --explicit-package-bases --namespace-packages $(PACKAGES:%=-p gemfleet.%)
	MYPYPATH=$(TYPED):tests $(BIN)/mypy --explicit-package-bases --namespace-packages --exclude tests/gpu/ tests
	@echo "== imports"
	$(BIN)/lint-imports

bench: $(BENCH_INSTALLED) ## one training step beside TRL, transformers and plain PyTorch, on this machine
	@echo "== benchmark: gemfleet bench peers"
	$(BIN)/gemfleet bench peers

wheel: $(INSTALLED) ## build the wheel, into dist/
	rm -rf build  # setuptools would put what an earlier build left there into the wheel
	$(BIN)/python -m pip wheel --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .

clean: ## remove the environment and everything made by these targets; runs and models in ~/.gemfleet stay
	rm -rf $(VENV) $(CUDA_VENV) .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so an interrupted installation is taken up again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(BIN)/python -c '' 2> /dev/null || .ci/make-venv $(VENV)
	@echo "== installing $(TORCH) and gemfleet into $(VENV); this takes some minutes, once"
	$(PIP_INSTALL) '$(TORCH)' --editable '.[demo,dev,mlflow,sweep,wandb]'
	@touch $@

$(BENCH_INSTALLED): $(INSTALLED)
	@echo "== installing the trainers to compare with"
	$(PIP_INSTALL) '$(TORCH)' --editable '.[demo,dev,mlflow,sweep,wandb,bench]'
	@touch $@

# Whatever CUDA build of torch the constraints do not name brings its own libraries along, so they are left to it.
$(CUDA_INSTALLED): pyproject.toml constraints.txt
	@$(CUDA_VENV)/bin/python -c '' 2> /dev/null || .ci/make-venv $(CUDA_VENV)
	@echo "== installing $(CUDA_TORCH) with CUDA and gemfleet into $(CUDA_VENV); this takes some minutes, once"
	grep -v '^torch==' constraints.txt > $(CUDA_VENV)/constraints.txt
	PYTHONDONTWRITEBYTECODE= $(CUDA_VENV)/bin/python -m pip install --disable-pip-version-check \
		--constraint $(CUDA_VENV)/constraints.txt '$(CUDA_TORCH)' --editable '.[demo,dev,gpu]'
	@touch $@

$(MLFLOW_INSTALLED): constraints.txt
	@$(MLFLOW_VENV)/bin/python -c '' 2> /dev/null || .ci/make-venv $(MLFLOW_VENV)
	PYTHONDONTWRITEBYTECODE= $(MLFLOW_VENV)/bin/python -m pip install --disable-pip-version-check '$(MLFLOW)'
	@touch $@

# The packages are installed below one name that no folder of the checkout has; mypy finds them through these links.
$(TYPED)/gemfleet/%:
	@mkdir -p $(@D)
	@ln -sfn ../../../$* $@
