# moebatch: `make` builds build/moebatch; `make help` lists the targets.
BUILD   ?= build
CC      ?= cc
PREFIX  ?= /usr/local
MPICC   ?= mpicc
PKGS    := yaml-0.1 jansson hwloc
HDF5    := $(shell command -v pkg-config >/dev/null && for p in hdf5-serial hdf5; do \
             pkg-config --exists $$p && echo $$p && break; done)
GITREV  := $(shell git describe --always --dirty --abbrev=10 2>/dev/null || echo unknown)

WARN    := -Wall -Wextra -Wpedantic -Werror
CFLAGS  ?= -O3 -g
STD     := -std=gnu11 -D_GNU_SOURCE -ffp-contract=off -fno-math-errno -fopenmp -fPIC
# The static library where there is one: the program then starts on hosts that lack liburing.
URING   := $(shell pkg-config --exists liburing 2>/dev/null && \
             { [ -e "$$($(CC) -print-file-name=liburing.a)" ] && echo -l:liburing.a || echo -luring; })
INC     := $(if $(URING),-DHAVE_LIBURING) -Isrc $(shell $(MPICC) --showme:compile 2>/dev/null) \
           $(shell pkg-config --cflags $(PKGS) $(HDF5) 2>/dev/null)
LIBS    := $(shell pkg-config --libs $(PKGS) $(HDF5) 2>/dev/null) \
           $(shell $(MPICC) --showme:link 2>/dev/null) $(URING) -lm -lpthread -ldl
SAN     :=
ifdef DEBUG
CFLAGS  := -O0 -g3
endif
ifdef ASAN
CFLAGS  := -O1 -g3 -fno-omit-frame-pointer
SAN     += -fsanitize=address
endif
ifdef UBSAN
CFLAGS  := -O1 -g3 -fno-omit-frame-pointer
SAN     += -fsanitize=undefined -fno-sanitize-recover=undefined
endif
ifneq ($(DEBUG)$(ASAN)$(UBSAN),)
ifeq ($(BUILD),build)
BUILD   := build/$(if $(DEBUG),debug)$(if $(ASAN),asan)$(if $(UBSAN),ubsan)
endif
endif
ALLFLAGS = $(STD) $(CFLAGS) $(SAN) $(WARN) $(INC)

# A file's suffix names the instructions it may use; the choice between them is made at run time.
X86     := $(filter x86_64,$(shell uname -m))
ISA_avx2       := $(if $(X86),-mavx2 -mfma -mf16c)
ISA_avx512     := $(if $(X86),-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c)
ISA_avx512bf16 := $(if $(X86),$(ISA_avx512) -mavx512bf16 -mavx512vbmi -mavx512vbmi2)
ISA_amx        := $(if $(X86),$(ISA_avx512bf16) -mamx-tile -mamx-bf16)
isaflags = $(ISA_$(lastword $(subst _, ,$(basename $(notdir $1)))))

DIRS    := core config checkpoint requests device gemm attention moe transport ep schedule balance \
           kvcache model cluster engine account plan cmd
SRCS    := $(foreach d,$(DIRS),$(wildcard src/$d/*.c)) src/main.c
OBJS    := $(SRCS:src/%.c=$(BUILD)/obj/%.o)
HDRS    := $(wildcard src/*/*.h)
UNIT    := $(patsubst tests/unit/test_%.c,%,$(wildcard tests/unit/test_*.c))
MPITEST := $(patsubst tests/mpi/test_%.c,%,$(wildcard tests/mpi/test_*.c))

.DELETE_ON_ERROR:
.SECONDEXPANSION:
.PHONY: all help check check-slurm unit mpi e2e demo bench install clean format lint deps fuzz

all: $(BUILD)/moebatch

help:
	@echo "make                 build/moebatch (DEBUG=1, ASAN=1, UBSAN=1 build beside it)"
	@echo "make demo            set up, build, generate text with 176 ranks"
	@echo "make check           set up, build, all tests"
	@echo "make unit mpi e2e    the three kinds of tests; make unit-NAME, mpi-NAME runs one"
	@echo "make check-slurm     the sbatch files on a real Slurm of this machine"
	@echo "make bench           kernels and all-to-all beside their baselines"
	@echo "make install PREFIX= DESTDIR=, clean, format, lint, fuzz"

$(BUILD)/moebatch: $(OBJS)
	$(CC) $(ALLFLAGS) -o $@ $^ $(LIBS)

$(BUILD)/obj/%.o: src/%.c Makefile
	@mkdir -p $(@D)
	$(CC) $(ALLFLAGS) $(call isaflags,$<) -MMD -MP -c -o $@ $<

$(BUILD)/obj/cmd/version.o: CFLAGS += -DMOEBATCH_GITREV='"$(GITREV)"'
$(BUILD)/obj/cmd/version.o: $(BUILD)/gitrev
$(BUILD)/obj/cmd/slurm.o: slurm/run.sbatch
$(BUILD)/gitrev: FORCE
	@mkdir -p $(@D)
	@echo '$(GITREV)' | cmp -s - $@ || echo '$(GITREV)' > $@
FORCE:

# Tests name the folders they link on their first line, so that one broken folder stops only its own.
testdirs = $(shell sed -n '1s|.*links: *\([a-z_ ]*\)\*/.*|\1|p' $1)
testobjs = $(foreach d,$(call testdirs,$1),$(patsubst src/%.c,$(BUILD)/obj/%.o,$(wildcard src/$d/*.c)))
testranks = $(shell sed -n '2s|.*ranks: *\([0-9 ]*\)\*/.*|\1|p' $1)

$(BUILD)/tests/unit/%: tests/unit/test_%.c $$(call testobjs,tests/unit/test_$$*.c)
	@mkdir -p $(@D)
	$(CC) $(ALLFLAGS) -Itests -o $@ $^ -lcmocka $(LIBS)
$(BUILD)/tests/mpi/%: tests/mpi/test_%.c $$(call testobjs,tests/mpi/test_$$*.c)
	@mkdir -p $(@D)
	$(CC) $(ALLFLAGS) -Itests -o $@ $^ -lcmocka $(LIBS)

MPIRUN  := scripts/mpirun.sh
.PHONY: $(UNIT:%=unit-%) $(MPITEST:%=mpi-%)
$(UNIT:%=unit-%): unit-%: $(BUILD)/tests/unit/%
	$< $(CASE)
$(MPITEST:%=mpi-%): mpi-%: $(BUILD)/tests/mpi/%
	@for n in $(call testranks,tests/mpi/test_$*.c); do \
	  echo "# mpi-$* on $$n ranks"; OMP_NUM_THREADS=1 $(MPIRUN) -np $$n $< $(CASE) || exit 1; done
unit: $(UNIT:%=unit-%)
mpi: $(MPITEST:%=mpi-%)

e2e: all
	BUILD=$(BUILD) $$(scripts/python.sh pytest h5py numpy) -m pytest -q -ra -p no:cacheprovider \
	  tests/e2e $(if $(CASE),-k '$(CASE)')

# Daemons of a real Slurm on this machine; needs root, skips where the packages cannot be installed.
check-slurm: all
	-@scripts/bootstrap.sh --slurm
	BUILD=$(BUILD) $$(scripts/python.sh pytest h5py numpy) -m pytest -q -ra -p no:cacheprovider \
	  tests/slurm $(if $(CASE),-k '$(CASE)')

check:
	BUILD=$(BUILD) MAKE='$(MAKE)' scripts/check.sh
demo:
	BUILD=$(BUILD) MAKE='$(MAKE)' scripts/demo.sh
lint:
	BUILD=$(BUILD) MAKE='$(MAKE)' scripts/lint.sh
format:
	clang-format -i $(SRCS) $(HDRS) $(wildcard tests/*/*.c)

bench: all
	$(BUILD)/moebatch bench machine
	$(BUILD)/moebatch bench gemm
	$(BUILD)/moebatch bench mla
	OMP_NUM_THREADS=1 $(MPIRUN) -np 2 $(BUILD)/moebatch bench ep

install: all
	install -D -m 755 $(BUILD)/moebatch $(DESTDIR)$(PREFIX)/bin/moebatch
	for d in $$(find inputs/jobs inputs/prices inputs/hardware inputs/shapes inputs/studies \
	  inputs/workloads -type d); do \
	  install -d $(DESTDIR)$(PREFIX)/share/moebatch/$$d && \
	  find $$d -maxdepth 1 -type f -exec install -m 644 {} $(DESTDIR)$(PREFIX)/share/moebatch/$$d/ \; \
	  || exit 1; done
	install -d $(DESTDIR)$(PREFIX)/share/moebatch/scripts
	install -m 755 scripts/tokenize.py scripts/show_text.py scripts/lib_tokenize.py scripts/lib_bpe.py \
	  $(DESTDIR)$(PREFIX)/share/moebatch/scripts/
	install -d $(DESTDIR)$(PREFIX)/share/moebatch/slurm
	install -m 644 slurm/*.sbatch $(DESTDIR)$(PREFIX)/share/moebatch/slurm/

# libFuzzer targets: make fuzz builds them, build/fuzz/NAME CORPUS runs one.
FUZZ    := $(patsubst tests/fuzz/fuzz_%.c,%,$(wildcard tests/fuzz/fuzz_*.c))
fuzzsrcs = $(foreach d,$(call testdirs,$1),$(wildcard src/$d/*.c))
fuzz: $(FUZZ:%=$(BUILD)/fuzz/%)
$(BUILD)/fuzz/%: tests/fuzz/fuzz_%.c $$(call fuzzsrcs,tests/fuzz/fuzz_$$*.c)
	@mkdir -p $(@D)
	clang $(STD) -g -O1 -fsanitize=fuzzer,address $(WARN) -Wno-unused-command-line-argument \
	  $(INC) -o $@ $^ $(LIBS)

clean:
	rm -rf build

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
