# The `gmem` command: examples/gmem/*.c on the public API of gmem.h, linked with the library's parts. Included by the Makefile.

PREFIX  ?= /usr/local
DESTDIR ?=

VERSION         := $(shell sed -n 's/^.define GMEM_VERSION "\(.*\)"/\1/p' src/api.h)
COMMAND_OBJECTS := $(patsubst %.c,$(BUILD)/%.o,$(wildcard examples/gmem/*.c))
MODEL           ?= examples/model
MODEL_FILES     := $(wildcard $(MODEL)/*.safetensors)

$(BUILD)/examples/gmem/%.o: examples/gmem/%.c
	@mkdir -p $(dir $@)
	$(COMPILE) $(MODEL_FLAGS) -I. -c $< -o $@

# The default model is built in where its files are in the tree.
$(BUILD)/examples/gmem/model.o: $(MODEL_FILES)
$(BUILD)/examples/gmem/model.o: MODEL_FLAGS := $(if $(MODEL_FILES),-DMODEL_FOLDER='"$(MODEL)"') \
    $(if $(filter %/image_encoder.safetensors,$(MODEL_FILES)),-DMODEL_ENCODES)

$(BUILD)/gmem: $(COMMAND_OBJECTS) $(BUILD)/libgmem.a
	$(LINK) $(COMMAND_OBJECTS) $(BUILD)/libgmem.a $(LIBS) -o $@

demo: $(BUILD)/gmem
	$(BUILD)/gmem sample -n 16 -s 1 -o demo.png

install: $(BUILD)/gmem gmem.h
	@mkdir -p $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/include $(DESTDIR)$(PREFIX)/share/pkgconfig
	install -m 755 $(BUILD)/gmem $(DESTDIR)$(PREFIX)/bin/gmem
	install -m 644 gmem.h $(DESTDIR)$(PREFIX)/include/gmem.h
	sed -e 's,@PREFIX@,$(PREFIX),' -e 's,@VERSION@,$(VERSION),' examples/gmem.pc.in > $(DESTDIR)$(PREFIX)/share/pkgconfig/gmem.pc

.PHONY: demo install
