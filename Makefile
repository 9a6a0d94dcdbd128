.PHONY: setup demo demo-segmentation test lint docs bench gpu results results-auto results-cache results-quick results-segmentation

PYTHON ?= python3
BIN := .venv/bin

setup: .venv/installed

.venv/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[test,lint,docs]"
	touch $@

demo: setup
	$(BIN)/python scripts/demo.py

demo-segmentation: setup
	$(BIN)/python scripts/demo.py --task semantic-segmentation

test: setup
	$(BIN)/python -m pytest -n 2

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: setup
	OMP_NUM_THREADS=1 $(BIN)/python scripts/benchmark.py
	OMP_NUM_THREADS=1 $(BIN)/python scripts/benchmark_cache.py
	$(BIN)/python scripts/benchmark_data.py

# Fashion-MNIST from Debian's package dataset-fashion-mnist, or else from the Hub
FASHION := $(or $(wildcard /usr/share/datasets/fashion-mnist),zalando-datasets/fashion_mnist)

runs/data/fashion-mnist/about.md: | setup
	$(BIN)/python scripts/make_data.py fashion-mnist $(FASHION) $(@D)

runs/data/glyphs/about.md: | setup
	$(BIN)/python scripts/make_data.py glyphs /usr/share/fonts $(@D)

EMOJI := openmoji@17.0.0 $(addprefix @iconify-json/,noto@1.2.9 noto-v1@1.2.5 fluent-emoji-flat@1.2.6 \
	openmoji@1.2.29 emojione@1.2.3 emojione-v1@1.2.3 twemoji@1.2.5)

runs/data/emoji/about.md: | setup
	npm install --silent --no-save --prefix runs/npm $(EMOJI)
	$(BIN)/python scripts/make_data.py emoji runs/npm/node_modules $(@D)

results: runs/data/fashion-mnist/about.md runs/data/glyphs/about.md
	$(BIN)/python scripts/compare.py scripts/compare/fashion-mnist.yaml scripts/compare/glyphs.yaml \
		--reported scripts/compare/reported.yaml --report RESULTS.md --workers 2
	$(BIN)/python -m hf_gdkd.comparison.gains results

results-auto: runs/data/fashion-mnist/about.md runs/data/glyphs/about.md runs/data/emoji/about.md
	$(BIN)/python scripts/compare.py scripts/compare/auto-fashion-mnist.yaml scripts/compare/auto-glyphs.yaml \
		scripts/compare/emoji.yaml --stacked --report RESULTS.md

results-cache: runs/data/fashion-mnist/about.md runs/data/glyphs/about.md
	$(BIN)/python scripts/compare.py scripts/compare/cache-fashion-mnist.yaml scripts/compare/cache-glyphs.yaml \
		--report RESULTS.md --workers 2

results-quick: runs/data/fashion-mnist/about.md
	rm -rf runs/results-quick
	$(BIN)/python scripts/compare.py scripts/compare/fashion-mnist.yaml --repeat cnn gdkd \
		--report RESULTS.md --output_dir runs/results-quick --workers 2

runs/data/fashion-scenes/about.md: | setup
	$(BIN)/python scripts/make_data.py fashion-scenes /usr/share/datasets/fashion-mnist $(@D)

results-segmentation: runs/data/fashion-scenes/about.md
	$(BIN)/python scripts/compare.py scripts/compare/fashion-scenes.yaml --report RESULTS.md --workers 2
	$(BIN)/python -m hf_gdkd.comparison.gains results

docs: setup
	$(BIN)/mkdocs build --strict

# For a machine with a GPU and without the Internet: nothing is installed
gpu:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) tests/gpu/report.py
