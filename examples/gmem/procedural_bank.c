/* Rows in the coordinates of their directions, half of each the class's and half their own, then turned by butterflies,
 * so that no element stands for a direction. */
#include "procedural_bank.h"

#include "procedural.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CLASS_ROWS 1281
#define MEAN       0.5f /* of a row's length, about */

int procedural_bank_open(procedural_bank *bank, int64_t rows, int64_t width, double decay) {
    double sum = 0;
    memset(bank, 0, sizeof *bank);
    bank->rows = rows;
    bank->width = width;
    bank->class_rows = rows < 10 * CLASS_ROWS ? (rows + 9) / 10 : CLASS_ROWS;
    bank->shared_class = -1;
    bank->weights = (float *)calloc((size_t)width, 4 * sizeof(float));
    if (!bank->weights) return 0;
    bank->mean = bank->weights + width;
    bank->row = bank->mean + width;
    bank->shared = bank->row + width;
    procedural_uniform("features.mean", 0, width, bank->mean);
    for (int64_t k = 0; k < width; k++) {
        sum += pow((double)(k + 1), -decay);
    }
    /* an element's variance: 1/3 of a uniform value's, twice with the class, makes 1 */
    for (int64_t k = 0; k < width; k++) {
        bank->weights[k] = (float)sqrt(1.5 * pow((double)(k + 1), -decay) * (double)width / sum);
    }
    return 1;
}

void procedural_bank_close(procedural_bank *bank) { free(bank->weights); }

/* Turns pairs at all distances of a power of two by an eighth of a circle. */
static void turn(float *x, int64_t width) {
    const float half = 0.70710678f;
    for (int64_t step = 1; step < width; step *= 2) {
        for (int64_t first = 0; first < width; first += 2 * step) {
            for (int64_t i = first; i < first + step && i + step < width; i++) {
                const float a = x[i], b = x[i + step];
                x[i] = half * (a + b);
                x[i + step] = half * (a - b);
            }
        }
    }
}

static void make_row(procedural_bank *bank, int64_t row) {
    const int64_t width = bank->width, its_class = row / bank->class_rows;
    if (its_class != bank->shared_class) {
        procedural_uniform("features.classes", its_class * width, width, bank->shared);
        bank->shared_class = its_class;
    }
    procedural_uniform("features", row * width, width, bank->row);
    for (int64_t i = 0; i < width; i++) {
        bank->row[i] = bank->weights[i] * (bank->row[i] + bank->shared[i]);
    }
    turn(bank->row, width);
    for (int64_t i = 0; i < width; i++) {
        bank->row[i] += MEAN * bank->mean[i];
    }
}

void procedural_bank_fill(procedural_bank *bank, int64_t first, int64_t count, float *out) {
    while (count > 0) {
        const int64_t column = first % bank->width, rest = bank->width - column, some = rest < count ? rest : count;
        make_row(bank, first / bank->width);
        memcpy(out, bank->row + column, (size_t)some * sizeof *out);
        first += some;
        count -= some;
        out += some;
    }
}
