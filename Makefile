# The only build entry. `make help` lists the targets; every configuration has its own folder
# build/<CONFIG>. The probe below says what was found; only MPI, HDF5 and libyaml are required.
CONFIG  ?= release
DEVICE  ?= cpu
CC      := $(if $(filter default,$(origin CC)),gcc,$(CC))
NVCC    := $(shell command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null)
BUILD   := build/$(CONFIG)
MULTI   := $(shell $(CC) -print-multiarch 2>/dev/null || echo x86_64-linux-gnu)

WARN    := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wundef \
           $(if $(WERROR),-Werror)
# -ffast-math is never used: it would remove the NaN tests.
MATH    := -fno-math-errno -fno-trapping-math -ffp-contract=fast
OPT     := -O2
OMP     := -fopenmp
SAN     :=
ifeq ($(CONFIG),asan)
  SAN := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
  OPT := -O1
endif
ifeq ($(CONFIG),ubsan)
  SAN := -fsanitize=undefined -fno-sanitize-recover=undefined
  OPT := -O1
endif
ifeq ($(CONFIG),tsan)
  SAN := -fsanitize=thread
  OPT := -O1
  OMP :=
endif

# ---- probe -------------------------------------------------------------------------------------
pkg  = $(shell pkg-config --exists $(1) 2>/dev/null && echo yes)
MPI_PKG  := $(firstword $(foreach p,ompi-c mpi-c mpi,$(if $(call pkg,$(p)),$(p))))
HDF5_PKG := $(firstword $(foreach p,hdf5-serial hdf5,$(if $(call pkg,$(p)),$(p))))
AV_OK    := $(if $(and $(call pkg,libavformat),$(call pkg,libavcodec),$(call pkg,libswscale)),yes)
YAML_OK  := $(call pkg,yaml-0.1)
JSON_OK  := $(call pkg,jansson)
BLAS_DIR := /usr/lib/$(MULTI)/openblas-openmp
BLAS_OK  := $(if $(wildcard $(BLAS_DIR)/libopenblas.so),yes)
DNNL_OK  := $(if $(wildcard /usr/include/dnnl.h /usr/include/oneapi/dnnl/dnnl.h),yes)

# The cuda device: nvcc and, where it is found, cuBLASLt (CUBLAS=folder with include/ and lib/).
# nvcc may be a script that lies elsewhere than the toolkit.
CUDA_TRY   := $(if $(NVCC),$(patsubst %/bin/nvcc,%,$(realpath $(NVCC))) /usr/local/cuda /usr)
CUDA_LIBS  := $(patsubst %/libcudart.so,%,$(firstword $(wildcard $(foreach h,$(CUDA_TRY), \
              $(addprefix $(h)/,$(addsuffix /libcudart.so,lib64 lib lib/$(MULTI)))))))
CUDA_HOME  := $(patsubst %/lib64,%,$(patsubst %/lib,%,$(CUDA_LIBS)))
CUBLAS     ?= $(patsubst %/include/cublasLt.h,%,$(firstword $(wildcard \
              $(CUDA_HOME)/include/cublasLt.h /usr/include/cublasLt.h)))
CUBLAS_LIB := $(firstword $(wildcard $(CUBLAS)/lib64/libcublasLt.so* $(CUBLAS)/lib/libcublasLt.so* \
              $(CUBLAS)/lib/$(MULTI)/libcublasLt.so*))
CUBLAS_OK  := $(if $(and $(CUBLAS),$(CUBLAS_LIB)),yes)
# nccl.h and cudnn.h are not needed; where they are found (NCCL=, CUDNN=folder), what we took from
# them is compared with them
CUDNN      ?= $(patsubst %/include/cudnn.h,%,$(firstword $(wildcard $(CUDA_HOME)/include/cudnn.h /usr/include/cudnn.h)))
NCCL       ?= $(patsubst %/include/nccl.h,%,$(firstword $(wildcard $(CUDA_HOME)/include/nccl.h /usr/include/nccl.h)))
CXX_OK     := $(shell command -v $(CXX) >/dev/null 2>&1 && echo yes)

DEFS := -D_GNU_SOURCE
INCS := -I.
LIBS := -lm -lpthread -ldl
define use_package
  INCS += $(patsubst -I%,-isystem %,$(filter -I%,$(shell pkg-config --cflags $(1))))
  LIBS += $(shell pkg-config --libs $(1))
endef
PACKAGES := $(MPI_PKG) $(HDF5_PKG) $(if $(YAML_OK),yaml-0.1) $(if $(JSON_OK),jansson) \
            $(if $(AV_OK),libavformat libavcodec libswscale libavutil)
$(foreach p,$(PACKAGES),$(eval $(call use_package,$(p))))
ifeq ($(BLAS_OK),yes)
  DEFS += -DHAVE_OPENBLAS
  INCS += -isystem /usr/include/$(MULTI)/openblas-openmp
  LIBS += -L$(BLAS_DIR) -Wl,-rpath,$(BLAS_DIR) -lopenblas
endif
ifeq ($(DNNL_OK),yes)
  DEFS += -DHAVE_DNNL
  LIBS += -ldnnl
endif

CFLAGS  ?=
Q       := $(if $(V),,@) # V=1 shows the whole commands
ALLC    := -std=c17 $(OPT) -g $(WARN) $(MATH) $(OMP) $(SAN) $(DEFS) $(INCS) -MMD -MP $(CFLAGS)
# -rdynamic: libosp_cuda.so uses err_stop, tensor_rows, rng_open ... of the program
LINK    := $(OMP) $(SAN) -rdynamic $(LDFLAGS)

# ---- sources -----------------------------------------------------------------------------------
DIRS := core core/ref core/cpu core/null parallel model optim data train rl
SRCS := $(foreach d,$(DIRS),$(wildcard $(d)/*.c))
# one implementation of data/video.h, by what the probe found
SRCS := $(filter-out $(if $(AV_OK),data/video_none.c,$(wildcard data/video_av*.c)),$(SRCS))
OBJS := $(SRCS:%.c=$(BUILD)/%.o)
LIBA := $(BUILD)/libosp.a
TESTSRC := $(wildcard tests/test_*.c)
TESTS   := $(TESTSRC:tests/%.c=$(BUILD)/tests/%)
# the tests of ops once more, on the kernels of the cuda device as host code
EMULATED := $(if $(CXX_OK),$(addprefix $(BUILD)/tests/test_cuda_emulated_,ops ops_rows ops_fused ops_policy ops_exact))
EMULATED_GOLDEN := $(if $(CXX_OK),$(addprefix $(BUILD)/tests/test_cuda_emulated_golden_,ops model block train))
EMULATED_LIBS := $(if $(CXX_OK),$(addprefix $(BUILD)/tests/test_cuda_emulated_,sdpa gemm copy order))
TESTS   += $(EMULATED) $(EMULATED_GOLDEN) $(EMULATED_LIBS)
TESTLIB := $(BUILD)/tests/check.o $(BUILD)/tests/grad.o $(BUILD)/tests/fixture.o $(BUILD)/tests/problem.o $(BUILD)/tests/h5.o $(BUILD)/tests/golden.o \
           $(BUILD)/tests/ops_case.o $(BUILD)/tests/train_case.o $(BUILD)/tests/process.o $(BUILD)/tests/fake_scorer.o $(BUILD)/tests/wire_damage.o \
           $(BUILD)/tests/queue_dev.o $(BUILD)/tests/lora_case.o $(BUILD)/tests/policy_case.o $(BUILD)/tests/rl_case.o $(BUILD)/tests/rl_process.o $(BUILD)/tests/foreign.o \
           $(BUILD)/tests/import_case.o

.PHONY: all probe help test test-fast fast golden asan ubsan tsan clang cuda demo bench clean deps \
        check format tests campaign deps-tests
all: probe osp $(if $(CUDA),cuda)

probe:
	@missing=""; \
	[ -n "$(MPI_PKG)" ]  || missing="$$missing MPI(libopenmpi-dev)"; \
	[ -n "$(HDF5_PKG)" ] || missing="$$missing HDF5(libhdf5-dev)"; \
	[ -n "$(YAML_OK)" ]  || missing="$$missing libyaml(libyaml-dev)"; \
	[ -n "$(JSON_OK)" ]  || missing="$$missing jansson(libjansson-dev)"; \
	if [ -n "$$missing" ]; then \
	  echo "missing:$$missing"; echo "run scripts/install_deps.sh, then make again"; exit 1; fi
	@echo "osp [$(CONFIG)] $(CC) | MPI $(MPI_PKG) | HDF5 $(HDF5_PKG) | OpenBLAS $(if $(BLAS_OK),yes,no: plain C gemm)" \
	      "| oneDNN $(if $(DNNL_OK),yes,no: bf16 gemm in plain C) | libav $(if $(AV_OK),yes,no: no video)" \
	      "| nvcc $(if $(NVCC),yes,no) | cuBLASLt $(if $(CUBLAS_OK),yes,no)"

osp: $(BUILD)/osp
	@ln -sfn $(BUILD)/osp osp

$(LIBA): $(OBJS)
	@rm -f $@; ar rcs $@ $^
# what osp --version says; the commit, where this tree is a repository of its own
VERSION    := $(or $(if $(wildcard .git),$(shell git --no-optional-locks describe --always --dirty --tags 2>/dev/null)),unknown)
BUILT_WITH := $(notdir $(CC)) $(shell $(CC) -dumpfullversion -dumpversion 2>/dev/null) [$(CONFIG)], MPI $(MPI_PKG), \
              HDF5 $(HDF5_PKG), OpenBLAS $(or $(BLAS_OK),no), oneDNN $(or $(DNNL_OK),no), libav $(or $(AV_OK),no)
$(BUILD)/osp.o: ALLC += -DOSP_VERSION='"$(VERSION)"' -DOSP_BUILT_WITH='"$(BUILT_WITH)"'
$(BUILD)/osp.o: $(BUILD)/version
$(BUILD)/version: FORCE
	@mkdir -p $(@D)
	@echo '$(VERSION) $(BUILT_WITH)' | cmp -s - $@ || echo '$(VERSION) $(BUILT_WITH)' > $@
$(BUILD)/osp: $(BUILD)/osp.o $(LIBA)
	@echo "  LD  $@"
	$(Q)$(CC) $(LINK) -o $@ $(BUILD)/osp.o $(LIBA) $(LIBS)

# vector kernels: one source per instruction set, chosen at run time
ifneq ($(filter x86_64%,$(MULTI)),)
$(BUILD)/core/cpu/%_avx2.o: ALLC += -O3 -mavx2 -mfma -mf16c
$(BUILD)/core/cpu/%_avx512.o: ALLC += -O3 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma
$(BUILD)/core/cpu/%_amx.o: ALLC += -O3 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512bf16 -mfma -mamx-tile -mamx-bf16
endif
$(BUILD)/core/cpu/%.o: ALLC += -O3

# ---- the cuda device ----------------------------------------------------------------------------
CUDA_SRCS := $(wildcard core/cuda/*.cu)
CUDNN_OBJS := $(BUILD)/core/cuda/cudnn.o $(BUILD)/core/cuda/cudnn_lib.o
CUDA_OBJS := $(CUDA_SRCS:%.cu=$(BUILD)/%.o) $(CUDNN_OBJS) $(BUILD)/core/cuda/staging.o
# machine code for sm_90a; PTX of the base architecture for newer ones
CUDA_ARCH ?= -gencode arch=compute_90a,code=sm_90a -gencode arch=compute_90,code=compute_90
NVFLAGS   := -std=c++20 -O3 $(CUDA_ARCH) -Werror all-warnings -I. -MMD -MP \
             -Xcompiler -Wall,-Wextra,-fPIC,-fvisibility=hidden,-g \
             $(if $(WERROR),-Xcompiler -Werror) $(if $(CUBLAS_OK),-DHAVE_CUBLASLT -isystem $(CUBLAS)/include)
cuda: $(if $(and $(NVCC),$(CUDA_LIBS)),$(BUILD)/libosp_cuda.so,cuda-missing)
	@$(if $(CUBLAS_OK),,echo "no cuBLASLt (cublasLt.h; CUBLAS=folder): matrix products by plain kernels, slow")
.PHONY: cuda-missing
cuda-missing:
	@echo "missing:$(if $(NVCC),, nvcc)$(if $(CUDA_LIBS),, libcudart.so) of the CUDA toolkit (12 or" \
	      "newer); put nvcc on PATH or give NVCC=/path/to/nvcc"; exit 1
# other flags (CUDA_ARCH, a cuBLASLt that was not there before): everything again
CUDA_FLAGS_FILE := $(BUILD)/core/cuda/flags
CUDA_WITH = $(NVCC) $(CUDA_ARCH) $(CUBLAS_LIB) $(CUDNN)
$(CUDA_FLAGS_FILE): FORCE
	@mkdir -p $(@D)
	@echo '$(CUDA_WITH)' | cmp -s - $@ || echo '$(CUDA_WITH)' > $@
.PHONY: FORCE
$(CUDA_OBJS): $(CUDA_FLAGS_FILE)
$(BUILD)/libosp_cuda.so: $(CUDA_OBJS)
	@echo "  LD  $@"
	$(Q)$(CXX) -shared $(OMP) -o $@ $^ -L$(CUDA_LIBS) -Wl,-rpath,$(CUDA_LIBS) -lcudart \
	  $(if $(CUBLAS_OK),$(CUBLAS_LIB) -Wl$(comma)-rpath$(comma)$(dir $(CUBLAS_LIB)))
$(BUILD)/core/cuda/%.o: core/cuda/%.cu
	@mkdir -p $(@D)
	@echo "  NVCC $<"
	$(Q)$(NVCC) $(NVFLAGS) -c $< -o $@
# host code in C; cudnn.h is used like nccl.h
$(BUILD)/core/cuda/staging.o: ALLC += -fPIC -fvisibility=hidden
$(CUDNN_OBJS): ALLC += -fPIC -fvisibility=hidden $(if $(and $(CUDNN),$(CUDA_HOME)),-DHAVE_CUDNN_H -isystem $(CUDNN)/include -isystem $(CUDA_HOME)/include)
# only compiles what needs cublasLt.h, for two generations of GPUs; CUBLAS=folder with include/
cublas-compile:
	@for arch in 80 90a; do $(MAKE) --no-print-directory BUILD=$(BUILD)/sm_$$arch CUBLAS_OK=yes WERROR=1 \
	  CUDA_ARCH="-gencode arch=compute_$$arch,code=sm_$$arch" $(BUILD)/sm_$$arch/core/cuda/cublaslt.o \
	  $(BUILD)/sm_$$arch/core/cuda/gemm.o || exit 1; done
# everything for the older generation that has the same tensor instructions; only compiled
cuda-sm80:
	@$(MAKE) --no-print-directory BUILD=$(BUILD)/sm_80 WERROR=1 CUDA_ARCH="-gencode arch=compute_80,code=sm_80" \
	  $(CUDA_OBJS:$(BUILD)/%=$(BUILD)/sm_80/%)
.PHONY: cublas-compile cuda-sm80
comma := ,
ifneq ($(and $(NCCL),$(CUDA_HOME)),)
$(BUILD)/parallel/comm_nccl.o: ALLC += -DHAVE_NCCL_H -isystem $(NCCL)/include -isystem $(CUDA_HOME)/include
endif

# the same kernels as host code on a simulator of blocks, for the tests only
EMU_OBJS := $(patsubst %.cu,$(BUILD)/emulate/%.o,$(wildcard tests/cudasim/*.cu) $(filter-out \
            core/cuda/cuda.cu core/cuda/cublaslt.cu,$(CUDA_SRCS))) $(BUILD)/core/cuda/staging.o
$(BUILD)/emulate/%.o: %.cu
	@mkdir -p $(@D)
	@echo "  CXX $<"
	$(Q)$(CXX) -x c++ -std=c++20 -DCUDA_EMULATE $(OPT) -g -Wall -Wextra -Wshadow -Wundef \
	  $(if $(WERROR),-Werror) $(SAN) $(DEFS) -I. -MMD -MP -c $< -o $@
$(EMULATED): $(BUILD)/tests/test_cuda_emulated_%: $(BUILD)/tests/test_%.o \
             $(BUILD)/tests/emulated.o $(BUILD)/tests/fake_cudnn.o $(EMU_OBJS) $(TESTLIB) $(LIBA)
	@echo "  LD  $@"
	$(Q)$(CXX) $(LINK) -o $@ $^ $(LIBS)
# the golden files on them
$(EMULATED_GOLDEN): $(BUILD)/tests/test_cuda_emulated_%: $(BUILD)/tests/test_%.o \
             $(BUILD)/tests/emulated_golden.o $(BUILD)/tests/fake_cudnn.o $(EMU_OBJS) $(TESTLIB) $(LIBA)
	@echo "  LD  $@"
	$(Q)$(CXX) $(LINK) -o $@ $^ $(LIBS)

# and what calls the libraries, with stand-ins for them
$(EMULATED_LIBS): $(BUILD)/tests/test_cuda_emulated_%: $(BUILD)/tests/emulated_%.o \
             $(BUILD)/tests/fake_cudnn.o $(EMU_OBJS) $(TESTLIB) $(LIBA)
	@echo "  LD  $@"
	$(Q)$(CXX) $(LINK) -o $@ $^ $(LIBS)

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	@echo "  CC  $<"
	$(Q)$(CC) $(ALLC) -c $< -o $@

$(BUILD)/tests/test_%: $(BUILD)/tests/test_%.o $(TESTLIB) $(LIBA)
	@echo "  LD  $@"
	$(Q)$(CC) $(LINK) -o $@ $< $(TESTLIB) $(LIBA) $(LIBS)
# the stand-in for NCCL that the tests of transports open
$(BUILD)/tests/fake_nccl.so: tests/fake_nccl.c tests/fake_queue.h
	@mkdir -p $(@D)
	@echo "  LD  $@"
	$(Q)$(CC) $(ALLC) -MF $(BUILD)/tests/fake_nccl.d -Wno-missing-prototypes -fPIC -shared $(SAN) -o $@ $<
$(BUILD)/tests/test_comm $(BUILD)/tests/test_nccl: | $(BUILD)/tests/fake_nccl.so
# cuDNN plans, with libraries that do nothing
FAKE_DRIVER := $(BUILD)/tests/fake_driver/libcuda.so.1 $(BUILD)/tests/fake_driver/libcublasLt.so.13
$(BUILD)/tests/fake_driver/libcuda.so.1: tests/fake_libcuda.c
$(BUILD)/tests/fake_driver/libcublasLt.so.13: tests/fake_cublaslt.c
$(FAKE_DRIVER):
	@mkdir -p $(@D)
	@echo "  LD  $@"
	$(Q)$(CC) -std=c17 -O1 -Wall -Wextra -fPIC -shared -Wl,-soname,$(@F) -o $@ $<
$(BUILD)/tests/fake_libcudnn.so: tests/fake_libcudnn.c core/cuda/cudnn_api.h core/bf16.h
	@mkdir -p $(@D)
	@echo "  LD  $@"
	$(Q)$(CC) $(ALLC) -MF $(BUILD)/tests/fake_libcudnn.d -Wno-missing-prototypes -fPIC -shared $(SAN) -o $@ $< -lm
$(BUILD)/tests/test_cudnn: | $(FAKE_DRIVER)
$(BUILD)/tests/test_cudnn_graph: | $(BUILD)/tests/fake_libcudnn.so $(FAKE_DRIVER)
$(BUILD)/tests/test_cudnn $(BUILD)/tests/test_cudnn_graph: %: %.o $(CUDNN_OBJS) $(TESTLIB) $(LIBA)
	@echo "  LD  $@"
	$(Q)$(CC) $(LINK) -o $@ $^ $(LIBS)
$(BUILD)/tests/bench/%: $(BUILD)/tests/bench/%.o $(LIBA)
	$(CC) $(LINK) -o $@ $< $(LIBA) $(LIBS)
tests: probe $(TESTS) $(BUILD)/osp
-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)

# ---- targets -----------------------------------------------------------------------------------
deps:
	@scripts/install_deps.sh
deps-tests:
	@scripts/install_deps.sh --tests
WITH_CUDA := $(if $(or $(CUDA),$(filter cuda,$(DEVICE))),cuda)
test: deps-tests
	@$(MAKE) --no-print-directory osp tests $(WITH_CUDA)
	@BUILD=$(BUILD) DEVICE=$(DEVICE) scripts/run_tests.sh
test-fast fast:
	@$(MAKE) --no-print-directory osp tests $(WITH_CUDA)
	@BUILD=$(BUILD) DEVICE=$(DEVICE) scripts/run_tests.sh --fast
golden: probe $(filter $(BUILD)/tests/test_golden_% $(EMULATED_GOLDEN),$(TESTS))
	@BUILD=$(BUILD) DEVICE=$(DEVICE) VERBOSE=1 scripts/run_tests.sh golden
# Sanitizers: everything that handles memory and files of others; tsan: ranks as threads and readers,
# without oneDNN (what it shares between threads behind its own locks would be reported as races).
SAN_asan  := config config_text prompts report_compare io data dataset split lock filter loader model checkpoint inspect metrics report train resume \
             ops_rows ops_fused ops_policy ops_exact policy_math reward reward_wire reward_fuzz reward_ranks units guided nft updates cudnn_graph \
             format format_torch format_fuzz import \
             $(if $(CXX_OK),$(addprefix cuda_emulated_,ops ops_rows ops_fused ops_policy ops_exact sdpa gemm copy order golden_ops golden_block golden_train))
SAN_ubsan := config data filter model ops ops_rows ops_fused ops_policy ops_exact policy_math golden_ops reward reward_wire reward_fuzz \
             format format_torch format_fuzz
SAN_tsan  := reward reward_ranks loader comm nccl check_comm model resume sequence guided
asan ubsan tsan:
	@$(MAKE) --no-print-directory CONFIG=$@ probe $(SAN_$@:%=build/$@/tests/test_%)
	@$(if $(filter tsan,$@),CPU_GEMM=own )BUILD=build/$@ LSAN_OPTIONS=suppressions=$(CURDIR)/tests/lsan.supp:print_suppressions=0 \
	  ASAN_OPTIONS=fast_unwind_on_malloc=0 scripts/run_tests.sh --fast $(SAN_$@:%=/test_%)
# hours; what it found is written into docs/campaign.md by hand
campaign:
	@$(MAKE) --no-print-directory osp tests
	@$(MAKE) --no-print-directory CONFIG=asan build/asan/tests/test_reward_fuzz build/asan/tests/test_format_fuzz
	@BUILD=$(BUILD) scripts/campaign.sh
clang:
	@$(MAKE) --no-print-directory CONFIG=clang CC=clang OMP= WERROR=1 osp tests
check:
	@scripts/check_layers.sh && scripts/check_style.sh
format:
	@clang-format -i $$(git ls-files '*.c' '*.h' '*.cu')
demo: deps
	@$(MAKE) --no-print-directory osp
	@scripts/demo.sh
bench: osp
	@python3 scripts/bench_cpu.py
clean:
	rm -rf build osp
help:
	@echo "make              build ./osp (CONFIG=release|asan|ubsan|tsan|clang, CC=, CUDA=1, WERROR=1)"; \
	echo "make demo         install what is missing, build, run the whole job on the clips of the tree"; \
	echo "make test         install what is missing, build, all tests on every device present;  DEVICE=cuda builds that one first"; \
	echo "make test-fast    the set for daily work, under a minute (also: make fast)"; \
	echo "make golden       reproduce the golden files of \$$GOLDEN_DIR (default tests/golden)"; \
	echo "make asan|ubsan|tsan   fast tests under a sanitizer;  make clang: build with clang, -Werror"; \
	echo "make campaign     the long runs: all layouts and policies in f64, FUZZ inputs a parser (100000, a million for scorers and foreign tensors), faulty scorers on 8 ranks, KILLS=50"; \
	echo "make cuda         only the library of the cuda device (make CUDA=1: all; needs nvcc)"; \
	echo "make check        include directions, style;  make format: clang-format in place"; \
	echo "make bench        CPU speed side by side with PyTorch;  make clean"
.SECONDARY:
