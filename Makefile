# make demo: the whole job on a small drawn sample.   make test: the tests.   make lint: ruff.
# PYTHON=... chooses another Python than python3, DEMO=... another folder than demo.
PYTHON ?= python3
BIN := .venv/bin
DEMO := demo

demo: .venv/installed
	$(BIN)/python data/make_sample.py --out $(DEMO)/raw --cities 6 --sites 3 --size 2400
	$(BIN)/python preprocessing.py --raw $(DEMO)/raw --out $(DEMO)/patches --image-size 160
	$(BIN)/python train_classification.py --data $(DEMO)/patches --out $(DEMO)/run \
	    --arch resnet18 --weights none --recipe robust --epochs 12 --batch-size 16 --resume
	$(BIN)/python test_classification.py --checkpoint $(DEMO)/run/last.pth --data $(DEMO)/patches
	$(BIN)/python -m relevance_cam --checkpoint $(DEMO)/run/last.pth --data $(DEMO)/patches \
	    --per-city 3
	@echo
	@echo "What lies where:"
	@echo "  $(DEMO)/raw/           the rasters: six drawn cities, three sites each"
	@echo "  $(DEMO)/patches/       the patch set"
	@echo "  $(DEMO)/run/           the training run: last.pth, log.csv, curves.png"
	@echo "  $(DEMO)/run/test_b/    how good it is on a site of each city that it has never seen," \
	    "and which cities resemble each other"
	@echo "  $(DEMO)/run/saliency/  what in a patch makes it that city: a sheet for each city," \
	    "a figure for each patch"
	@echo "The results on one page, to be opened in a browser: $(DEMO)/run/test_b/report.html"

test: .venv/tests
	OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 \
	    $(BIN)/python -m pytest -q -n 2 --dist worksteal tests

lint: .venv/tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
	    "Python 3.10 or newer is needed; choose one with make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/tests: .venv/installed requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

.PHONY: demo test lint
