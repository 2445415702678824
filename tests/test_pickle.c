/* The pickle in a torch file: a malformed one for every rule of the reader, what is accepted, and hostile ones, which
 * must cost no more memory than they have bytes. */
#include "torch_check.h"

/* rules ----------------------------------------------------------------------------------------------------------- */

/* A pickle in a zip; what is wrong begins behind `good`. */
static void expect_pickle_bytes(const char *what, const char *good, size_t good_size, const char *bad, size_t bad_size,
                                gmem_status code) {
    bytes pickle = {NULL, 0, 0};
    zip_image image;
    bytes_add(&pickle, good, good_size);
    bytes_add(&pickle, bad, bad_size);
    torch_zip(&image, pickle.data, pickle.size);
    expect(what, &image.file, code, image.data[0] + good_size);
    bytes_free(&image.file);
    bytes_free(&pickle);
}

#define EXPECT_PICKLE(what, good, bad, code) \
    expect_pickle_bytes((what), (good), sizeof(good) - 1, (bad), sizeof(bad) - 1, (code))

static void test_pickle_opcodes(void) {
    static const char refused[] = "012FILPSTUVdgilop\x82\x83\x84\x96\x97\x98\x80\xff";
    for (const char *code = refused; *code; code++) {
        char bad[] = "?\0\0\0\0\0\0\0\0.";
        bad[0] = *code;
        expect_pickle_bytes("a refused opcode", "\x80\4", 2, bad, sizeof bad - 1, GMEM_E_PICKLE_OPCODE);
    }
    EXPECT_PICKLE("SHORT_BINUNICODE in protocol 3", "\x80\3", "\x8c\1x.", GMEM_E_PICKLE_OPCODE);
    EXPECT_PICKLE("MEMOIZE in protocol 2", "\x80\2N", "\x94.", GMEM_E_PICKLE_OPCODE);
    EXPECT_PICKLE("SHORT_BINBYTES in protocol 2", "\x80\2", "C\1x.", GMEM_E_PICKLE_OPCODE);
    EXPECT_PICKLE("protocol 1", "", "\x80\1N.", GMEM_E_PICKLE_PROTOCOL);
    EXPECT_PICKLE("protocol 5", "", "\x80\5N.", GMEM_E_PICKLE_PROTOCOL);
    EXPECT_PICKLE("no protocol", "", "}.", GMEM_E_PICKLE_PROTOCOL);
    EXPECT_PICKLE("nothing", "", "", GMEM_E_TRUNCATED);
    EXPECT_PICKLE("no STOP", "\x80\2N", "", GMEM_E_TRUNCATED);
    EXPECT_PICKLE("cut opcode", "\x80\2", "J\1\0\0", GMEM_E_TRUNCATED);
    EXPECT_PICKLE("cut integer", "\x80\2", "\x8a\5\1", GMEM_E_TRUNCATED);
    EXPECT_PICKLE("huge string", "\x80\2", "X\xff\xff\xff\xff.", GMEM_E_TRUNCATED);
    EXPECT_PICKLE("cut global", "\x80\2", "cposix\nsystem", GMEM_E_TRUNCATED);
    EXPECT_PICKLE("frame over the end", "\x80\4", "\x95\xff\0\0\0\0\0\0\0N.", GMEM_E_TRUNCATED);
    EXPECT_PICKLE("LONG4", "\x80\2", "\x8b\xff\xff\xff\x7f.", GMEM_E_LIMIT);
    EXPECT_PICKLE("BINUNICODE8", "\x80\4", "\x8d\1\0\0\0\0\0\0\0x.", GMEM_E_LIMIT);
    EXPECT_PICKLE("BINBYTES8", "\x80\4", "\x8e\1\0\0\0\0\0\0\0x.", GMEM_E_LIMIT);
    EXPECT_PICKLE("bytes after STOP", "\x80\2}" P_TEXT1("w") P_TENSOR "s.", "N", GMEM_E_PICKLE_TRAILING);
}

static void test_pickle_stack(void) {
    EXPECT_PICKLE("STOP without a value", "\x80\2", ".", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("STOP with two", "\x80\2NN", ".", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("STOP in a group", "\x80\2N(", ".", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("TUPLE without a mark", "\x80\2N", "t.", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("TUPLE2 of one", "\x80\2N", "\x86.", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("TUPLE1 across a mark", "\x80\2N(", "\x85.", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("APPEND to nothing", "\x80\2N", "a.", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("APPENDS to nothing", "\x80\2(N", "e.", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("SETITEMS of three", "\x80\2}(NNN", "u.", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("REDUCE without arguments", "\x80\2cx\ny\n", "R.", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("BUILD without state", "\x80\2cx\ny\n", "b.", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("BINPERSID of nothing", "\x80\2", "Q.", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("STACK_GLOBAL of one", "\x80\4\x8c\1x", "\x93.", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("BINPUT of nothing", "\x80\2", "q\0.", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("BINPUT out of order", "\x80\2N", "q\1.", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("LONG_BINPUT far away", "\x80\2N", "r\xff\xff\xff\xff.", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("BINGET of nothing", "\x80\2", "h\0.", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("LONG_BINGET of nothing", "\x80\2Nq\0", "j\1\0\0\0.", GMEM_E_PICKLE_STACK);
}

static void test_pickle_values(void) {
    EXPECT_PICKLE("APPEND to a dict", "\x80\2}N", "a.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("SETITEM on a list", "\x80\2]NN", "s.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("ADDITEMS to a list", "\x80\4](N", "\x90.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("a call of a string", "\x80\2" P_TEXT1("f") ")", "R.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("a call of a storage class", "\x80\2" P_CLASS("Float") ")", "R.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("arguments that are no tuple", "\x80\2ccollections\nOrderedDict\n]", "R.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("arguments that are a float", "\x80\2ccollections\nOrderedDict\nG\x7f\xff\xff\xff\x7f\xff\xff\xff",
                  "R.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("an id that is a float", "\x80\2G\x7f\xff\xff\xff\x7f\xff\xff\xff", "Q.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("OrderedDict with arguments", "\x80\2ccollections\nOrderedDict\n]\x85", "R.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("a size of a list",
                  "\x80\2"
                  "ctorch\nSize\n]\x85",
                  "R.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("a device of a number",
                  "\x80\2"
                  "ctorch\ndevice\nK\1\x85",
                  "R.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("a parameter of None",
                  "\x80\2"
                  "ctorch._utils\n_rebuild_parameter\nN\x88}\x87",
                  "R.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("BUILD on a dict", "\x80\2}}", "b.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("NEWOBJ of a function", "\x80\2ccollections\nOrderedDict\n)", "\x81.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("a global named by a number", "\x80\4\x8c\1xK\1", "\x93.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("no UTF-8", "\x80\2", "X\2\0\0\0\xc3\x28.", GMEM_E_PICKLE_UTF8);
    EXPECT_PICKLE("a surrogate", "\x80\2", "X\3\0\0\0\xed\xa0\x80.", GMEM_E_PICKLE_UTF8);
    EXPECT_PICKLE("a global that is no UTF-8", "\x80\2", "c\xff\nx\n.", GMEM_E_PICKLE_UTF8);
    EXPECT_PICKLE("a global without a name", "\x80\2", "cx\n\n.", GMEM_E_NAME);
    EXPECT_PICKLE("a key with a NUL", "\x80\2}", "X\3\0\0\0a\0bK\1s.", GMEM_E_NAME);
    EXPECT_PICKLE("a string with a NUL", "\x80\2}" P_TEXT1("k"), "X\3\0\0\0a\0bs.", GMEM_E_NAME);
    EXPECT_PICKLE("a list in itself", "\x80\2", "]q\0h\0a.", GMEM_E_PICKLE_CYCLE);
    EXPECT_PICKLE("a dict in a list in itself", "\x80\2", "}q\0" P_TEXT1("k") "]h\0as.", GMEM_E_PICKLE_CYCLE);
}

static void test_pickle_storages(void) {
#define ID "(X\7\0\0\0storage"
    EXPECT_PICKLE("an id that is no tuple", "\x80\2]", "Q.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("an id of another kind", "\x80\2(X\7\0\0\0storagfNNNNt", "Q.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("four parts", "\x80\2" ID P_CLASS("Float") P_TEXT1("0") P_TEXT1("c") "t", "Q.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("six parts", "\x80\2" ID P_CLASS("Float") P_TEXT1("0") P_TEXT1("c") "K\6Nt", "Q.",
                  GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("a class that is none", "\x80\2" ID "N" P_TEXT1("0") P_TEXT1("c") "K\6t", "Q.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("a key that is a number", "\x80\2" ID P_CLASS("Float") "K\0" P_TEXT1("c") "K\6t", "Q.",
                  GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("a size that is a string", "\x80\2" ID P_CLASS("Float") P_TEXT1("0") P_TEXT1("c") P_TEXT1("6") "t",
                  "Q.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("a negative size", "\x80\2" ID P_CLASS("Float") P_TEXT1("0") P_TEXT1("c") "J\xff\xff\xff\xfft", "Q.",
                  GMEM_E_STORAGE);
    EXPECT_PICKLE("a size whose bytes overflow",
                  "\x80\2" ID P_CLASS("Float") P_TEXT1("0") P_TEXT1("c") "\x8a\x8\0\0\0\0\0\0\0\x40t", "Q.",
                  GMEM_E_STORAGE);
    EXPECT_PICKLE("a size beyond int64",
                  "\x80\2" ID P_CLASS("Float") P_TEXT1("0") P_TEXT1("c") "\x8a\x9\0\0\0\0\0\0\0\0\1t", "Q.",
                  GMEM_E_OVERFLOW);
    EXPECT_PICKLE("one key, two sizes",
                  "\x80\2]" P_STORAGE "a(X\7\0\0\0storage" P_CLASS("Float") P_TEXT1("0") P_TEXT1("c") "K\5t", "Q.",
                  GMEM_E_STORAGE);
    EXPECT_PICKLE("one key, two types",
                  "\x80\2]" P_STORAGE "a(X\7\0\0\0storage" P_CLASS("Int") P_TEXT1("0") P_TEXT1("c") "K\6t", "Q.",
                  GMEM_E_STORAGE);
#undef ID
}

static void test_pickle_tensors(void) {
#define EXPECT_TENSOR(what, parts, code) EXPECT_PICKLE(what, "\x80\2" P_REBUILD P_STORAGE parts P_REST, "R.", code)
    EXPECT_TENSOR("offset past the end", "K\1K\2K\3\x86K\3K\1\x86", GMEM_E_TENSOR);
    EXPECT_TENSOR("negative offset", "J\xff\xff\xff\xffK\2K\3\x86K\3K\1\x86", GMEM_E_TENSOR);
    EXPECT_TENSOR("stride past the end", "K\0K\2K\3\x86K\4K\1\x86", GMEM_E_TENSOR);
    EXPECT_TENSOR("negative size", "K\0J\xff\xff\xff\xffK\3\x86K\3K\1\x86", GMEM_E_TENSOR);
    EXPECT_TENSOR("negative stride", "K\5K\2K\3\x86J\xfd\xff\xff\xffK\1\x86", GMEM_E_TENSOR);
    EXPECT_TENSOR("stride of zero", "K\0K\7\x85K\0\x85", GMEM_E_TENSOR);
    EXPECT_TENSOR("gigabytes from nothing", "K\0J\0\0\0\x40J\0\0\0\x40\x86K\0K\0\x86", GMEM_E_TENSOR);
    EXPECT_TENSOR("overflow", "K\0J\xff\xff\xff\x7fJ\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x87K\0K\0K\0\x87", GMEM_E_TENSOR);
    EXPECT_TENSOR("span overflow",
                  "K\0K\2K\2\x86\x8a\x8\xff\xff\xff\xff\xff\xff\xff\x7f\x8a\x8\xff\xff\xff\xff\xff\xff\xff\x7f\x86",
                  GMEM_E_TENSOR);
    EXPECT_TENSOR("nine dimensions", "K\0(K\1K\1K\1K\1K\1K\1K\1K\1K\1t(K\1K\1K\1K\1K\1K\1K\1K\1K\1t", GMEM_E_TENSOR);
    EXPECT_TENSOR("a stride too few", "K\0K\2K\3\x86K\1\x85", GMEM_E_TENSOR);
    EXPECT_TENSOR("an empty one outside", "K\7K\0\x85K\1\x85", GMEM_E_TENSOR);
    EXPECT_TENSOR("a size that is a list", "K\0]K\1\x85", GMEM_E_PICKLE_VALUE);
    EXPECT_TENSOR("an offset that is a float", "G\0\0\0\0\0\0\0\0K\2K\3\x86K\3K\1\x86", GMEM_E_PICKLE_VALUE);
    EXPECT_TENSOR("a size beyond int64", "K\0\x8a\x9\0\0\0\0\0\0\0\0\1\x85K\1\x85", GMEM_E_OVERFLOW);
#undef EXPECT_TENSOR
    EXPECT_PICKLE("a storage that is none", "\x80\2" P_REBUILD "NK\0K\2K\3\x86K\3K\1\x86" P_REST, "R.",
                  GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("five arguments", "\x80\2" P_REBUILD P_STORAGE "K\0K\2K\3\x86K\3K\1\x86\x89t", "R.",
                  GMEM_E_PICKLE_VALUE);
}

/* what is accepted ------------------------------------------------------------------------------------------------ */

typedef struct loaded {
    zip_image image;
    gmem_file *file;
} loaded;

static loaded open_pickle_bytes(const char *pickle, size_t size, const char *key) {
    loaded result;
    gmem_error error;
    memset(&result, 0, sizeof result);
    memset(&error, 0, sizeof error);
    torch_zip(&result.image, pickle, size);
    if (gmem_file_open_memory(shared_context, "x", result.image.file.data, result.image.file.size, key, &result.file,
                              &error) != GMEM_OK) {
        printf("cannot open: %s\n", error.message);
        CHECK(0);
        exit(check_report());
    }
    return result;
}

#define OPEN_PICKLE(literal) open_pickle_bytes((literal), sizeof(literal) - 1, ".")

static void loaded_close(loaded *file) {
    gmem_file_close(file->file);
    bytes_free(&file->image.file);
}

static void check_floats(const gmem_tensor *tensor, int count, float first, float step) {
    float values[6];
    if (!CHECK(tensor) || !CHECK_INT(gmem_tensor_count(tensor), count)) return;
    gmem_tensor_read_f32(tensor, 0, count, values);
    for (int i = 0; i < count; i++)
        CHECK(values[i] == first + step * (float)i);
}

static void test_keys(void) {
    /* clang-format off */
    loaded o = OPEN_PICKLE("\x80\2}("
        P_TEXT1("d") "}(K\7" P_TENSOR "J\xfe\xff\xff\xffK\1u"
        P_TEXT1("l") "](" P_TENSOR "NK\5e"
        P_TEXT1("t") "K\1]K\2a\x86"
        P_TEXT1("o") P_ORDERED P_TEXT1("k") "K\3s}b"
        "K\1K\2\x86" "K\4"
        "\x88" "K\5"
        "u.");
    /* clang-format on */
    check_floats(gmem_file_find_any(o.file, "d.7"), 6, 0, 1);
    check_number(o.file, "d.-2", 1);
    check_floats(gmem_file_find_any(o.file, "l.0"), 6, 0, 1);
    check_number(o.file, "l.2", 5);
    check_number(o.file, "t.0", 1);
    check_number(o.file, "t.1.0", 2);
    check_number(o.file, "o.k", 3);
    check_number(o.file, "4", 4); /* a tuple as key goes by its place */
    check_number(o.file, "5", 5);
    CHECK_INT(gmem_file_tensor_count(o.file), 2);
    loaded_close(&o);

    o = OPEN_PICKLE("\x80\2" P_TENSOR ".");
    check_floats(gmem_file_find(o.file, "tensor"), 6, 0, 1);
    loaded_close(&o);
}

static void test_values(void) {
    /* clang-format off */
    loaded o = OPEN_PICKLE("\x80\4}("
        P_TEXT1("w") P_TENSOR
        P_TEXT1("a") "\x8a\0"
        P_TEXT1("b") "\x8a\1\xff"
        P_TEXT1("c") "\x8a\x9\0\0\0\0\0\0\0\0\1"
        P_TEXT1("d") "\x8a\x9\0\0\0\0\0\0\0\0\xff"
        P_TEXT1("e") "\x8a\x9\1\0\0\0\0\4\0\0\1"
        P_TEXT1("f") "\x8a\x8\0\0\0\0\0\0\0\x80"
        P_TEXT1("g") "G\xbf\xf8\0\0\0\0\0\0"
        P_TEXT1("h") "J\0\0\0\x80"
        P_TEXT1("i") "M\xff\xff"
        P_TEXT1("j") "ctorch\nbfloat16\n"
        P_TEXT1("k") "ctorch\ndevice\nX\4\0\0\0cudaK\3\x86R"
        P_TEXT1("l") "ctorch\ndevice\nX\3\0\0\0cpu\x85R"
        P_TEXT1("m") "ctorch\nSize\nK\5\x85\x85R"
        P_TEXT1("n") "C\2\xff\0"
        P_TEXT1("o") "\x8f(K\1\x90"
        P_TEXT1("p") "(K\2\x91"
        "u.");
    /* clang-format on */
    check_number(o.file, "a", 0);
    check_number(o.file, "b", -1);
    check_number(o.file, "c", 18446744073709551616.0);
    check_number(o.file, "d", -18446744073709551616.0);
    check_number(o.file, "e", 18446744073709551616.0 + 4398046511104.0); /* the 1 at the end is beyond a double */
    check_number(o.file, "f", -9223372036854775808.0);
    check_number(o.file, "g", -1.5);
    check_number(o.file, "h", -2147483648.0);
    check_number(o.file, "i", 65535);
    CHECK_TEXT(gmem_file_string(o.file, "j"), "torch.bfloat16");
    CHECK_TEXT(gmem_file_string(o.file, "k"), "cuda:3");
    CHECK_TEXT(gmem_file_string(o.file, "l"), "cpu");
    check_number(o.file, "m.0", 5);
    CHECK(gmem_file_string(o.file, "n") == NULL);
    check_number(o.file, "o.0", 1);
    check_number(o.file, "p.0", 2);
    CHECK_INT(gmem_file_foreign_count(o.file), 0);
    loaded_close(&o);
}

static void test_tensors(void) {
    /* clang-format off */
    loaded o = OPEN_PICKLE("\x80\2}("
        P_TEXT1("t") P_REBUILD P_STORAGE "K\0K\3K\2\x86K\1K\3\x86" P_REST "R"
        P_TEXT1("o") P_REBUILD P_STORAGE "K\4K\2\x85K\1\x85" P_REST "R"
        P_TEXT1("s") P_REBUILD P_STORAGE "K\5))" P_REST "R"
        P_TEXT1("e") P_REBUILD P_STORAGE "K\6K\0K\x63\x86K\1K\1\x86" P_REST "R"
        P_TEXT1("p") "ctorch._utils\n_rebuild_parameter\n" P_TENSOR "\x88" P_ORDERED "\x87R"
        P_TEXT1("1") "ctorch._utils\n_rebuild_tensor\n(" P_STORAGE "K\1K\2\x85K\2\x85tR"
        "u.");
    /* clang-format on */
    float transposed[6];
    const gmem_tensor *t = gmem_file_find(o.file, "t");
    if (CHECK(t)) {
        gmem_tensor_read_f32(t, 0, 6, transposed);
        CHECK(transposed[1] == 3 && transposed[2] == 1 && transposed[5] == 5);
    }
    check_floats(gmem_file_find(o.file, "o"), 2, 4, 1);
    check_floats(gmem_file_find(o.file, "s"), 1, 5, 1);
    check_floats(gmem_file_find(o.file, "e"), 0, 0, 0);
    check_floats(gmem_file_find(o.file, "p"), 6, 0, 1);
    check_floats(gmem_file_find(o.file, "1"), 2, 1, 2);
    loaded_close(&o);
}

/* Foreign objects: what is applied to them vanishes, their names are told, nothing happens. */
static void test_foreign(void) {
    /* clang-format off */
    loaded o = OPEN_PICKLE("\x80\2}("
        P_TEXT1("w") P_TENSOR
        P_TEXT1("x") "cposix\nsystem\nX\6\0\0\0reboot\x85R"
        P_TEXT1("n") "cargparse\nNamespace\n)\x81}(" P_TEXT1("a") "K\1ub"
        P_TEXT1("s") "cposix\nsystem\n)R](K\1ea"
        P_TEXT1("d") "cmy\nDict\n)R" P_TEXT1("k") "K\1s(" P_TEXT1("q") "K\2u"
        P_TEXT1("c") P_REBUILD P_ID("ComplexFloat", "9", "K\1") "K\0K\1\x85K\1\x85" P_REST "R"
        P_TEXT1("i") P_REBUILD P_STORAGE "K\0cnumpy\nint64\n\x85K\1\x85" P_REST "R"
        "u.");
    /* clang-format on */
    static const char *const names[] = {"posix.system", "argparse.Namespace", "my.Dict", "torch.ComplexFloatStorage",
                                        "numpy.int64"};
    double number;
    CHECK_INT(gmem_file_foreign_count(o.file), 5);
    for (int i = 0; i < 5; i++)
        CHECK_TEXT(gmem_file_foreign(o.file, i), names[i]);
    CHECK_INT(gmem_file_tensor_count(o.file), 1);
    CHECK(!gmem_file_number(o.file, "n.a", &number));
    CHECK(!gmem_file_number(o.file, "s.0", &number));
    CHECK(!gmem_file_number(o.file, "d.k", &number));
    loaded_close(&o);
    EXPECT_PICKLE("a cycle through an inert object is none",
                  "\x80\2}(" P_TEXT1("w") P_TENSOR P_TEXT1("x") "cmy\nNode\n)\x81q\0}" P_TEXT1("p") "h\0sbu.", "N",
                  GMEM_E_PICKLE_TRAILING);
    EXPECT_PICKLE("BUILD on a list that holds one", "\x80\2]cmy\nNode\na}", "b.", GMEM_E_PICKLE_VALUE);
}

/* hostile pickles ------------------------------------------------------------------------------------------------- */

/* A pickle of `head`, `count` times `piece`, `tail`, in a zip. */
static void expect_repeated(const char *what, const char *head, size_t head_size, const char *piece, size_t piece_size,
                            int count, const char *tail, size_t tail_size, gmem_status code) {
    bytes pickle = {NULL, 0, 0};
    zip_image image;
    bytes_add(&pickle, head, head_size);
    for (int i = 0; i < count; i++)
        bytes_add(&pickle, piece, piece_size);
    bytes_add(&pickle, tail, tail_size);
    torch_zip(&image, pickle.data, pickle.size);
    expect_metered(what, &image.file, code);
    bytes_free(&image.file);
    bytes_free(&pickle);
}

#define EXPECT_REPEATED(what, head, piece, count, tail, code)                                                        \
    expect_repeated((what), (head), sizeof(head) - 1, (piece), sizeof(piece) - 1, (count), (tail), sizeof(tail) - 1, \
                    (code))

static void test_deep(void) {
    bytes pickle = {NULL, 0, 0};
    zip_image image;
    PIECE(&pickle, "\x80\2");
    for (int i = 0; i < 100000; i++)
        PIECE(&pickle, "]");
    for (int i = 1; i < 100000; i++)
        PIECE(&pickle, "a");
    PIECE(&pickle, ".");
    torch_zip(&image, pickle.data, pickle.size);
    expect_metered("100000 lists in each other", &image.file, GMEM_E_LIMIT);
    bytes_free(&image.file);
    bytes_free(&pickle);
    EXPECT_REPEATED("100000 tuples in each other", "\x80\2N", "\x85", 100000, ".", GMEM_E_LIMIT);
    EXPECT_REPEATED("100000 marks", "\x80\2", "(", 100000, ".", GMEM_E_PICKLE_STACK);
    EXPECT_REPEATED("20000 tuples in a foreign object", "\x80\2}(" P_TEXT1("w") P_TENSOR P_TEXT1("x") "cmy\nNode\nN",
                    "\x85", 20000, "Ru.", GMEM_OK);
}

/* Each list holds the one before twice: 2^60 leaves, or none at all. */
static void test_sharing(void) {
    for (int leaves = 0; leaves < 2; leaves++) {
        bytes pickle = {NULL, 0, 0};
        zip_image image;
        PIECE(&pickle, "\x80\2(]q");
        bytes_number(&pickle, 0, 1);
        if (leaves) PIECE(&pickle, "K\1a");
        for (uint64_t i = 0; i < 60; i++) {
            PIECE(&pickle, "]q");
            bytes_number(&pickle, i + 1, 1);
            PIECE(&pickle, "(h");
            bytes_number(&pickle, i, 1);
            PIECE(&pickle, "h");
            bytes_number(&pickle, i, 1);
            PIECE(&pickle, "e");
        }
        PIECE(&pickle, "t.");
        torch_zip(&image, pickle.data, pickle.size);
        expect_metered("a billion laughs", &image.file, GMEM_E_LIMIT);
        bytes_free(&image.file);
        bytes_free(&pickle);
    }
}

static void test_many(void) {
    EXPECT_REPEATED("lists on the stack", "\x80\2", "]", 1000000, ".", GMEM_E_LIMIT);
    EXPECT_REPEATED("Nones on the stack", "\x80\2", "N", 1000000, ".", GMEM_E_PICKLE_STACK);
    EXPECT_REPEATED("dictionaries in a list", "\x80\2](", "}", 1000000, "e.", GMEM_E_LIMIT);
    EXPECT_REPEATED("numbers in a list", "\x80\2](", "K\1", 1000000, "e.", GMEM_E_LIMIT);
    EXPECT_REPEATED("memo entries", "\x80\4N", "\x94", 1000000, ".", GMEM_E_NO_TENSORS);
    EXPECT_REPEATED("shared tensors", "\x80\4" P_TENSOR "\x94](", "h\0", 100000, "e\x86.", GMEM_E_LIMIT);
    EXPECT_REPEATED("shared long strings",
                    "\x80\4\x8c\377"
                    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
                    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
                    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde"
                    "\x94](",
                    "h\0", 30000, "e\x86.", GMEM_E_LIMIT);
    EXPECT_REPEATED("one global, often", "\x80\2}(" P_TEXT1("w") P_TENSOR P_TEXT1("x") "](", "cposix\nsystem\n", 50000,
                    "eu.", GMEM_OK);
    bytes pickle = {NULL, 0, 0};
    zip_image image;
    PIECE(&pickle, "\x80\2](");
    for (int i = 0; i < 1025; i++) {
        char name[32];
        const int size = snprintf(name, sizeof name, "cm\nn%d\n", i);
        bytes_add(&pickle, name, (size_t)size);
    }
    PIECE(&pickle, "e.");
    torch_zip(&image, pickle.data, pickle.size);
    expect_metered("too many globals", &image.file, GMEM_E_LIMIT);
    bytes_free(&image.file);
    bytes_free(&pickle);
}

int main(void) {
    CHECK_OK(gmem_context_create(NULL, &shared_context, NULL));
    test_pickle_opcodes();
    test_pickle_stack();
    test_pickle_values();
    test_pickle_storages();
    test_pickle_tensors();
    test_keys();
    test_values();
    test_tensors();
    test_foreign();
    test_deep();
    test_sharing();
    test_many();
    gmem_context_destroy(shared_context);
    return check_report();
}
