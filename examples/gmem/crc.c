/* CRC-32 by tables for each of eight bytes ("slicing by 8": Kounavis and Berry, 2008). */
#include "crc.h"

void crc_prepare(crc_table *table) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++) {
            crc = crc & 1 ? crc >> 1 ^ 0xedb88320u : crc >> 1;
        }
        table->after[0][byte] = crc;
    }
    for (int later = 1; later < 8; later++) {
        for (int byte = 0; byte < 256; byte++) {
            uint32_t crc = table->after[later - 1][byte];
            table->after[later][byte] = crc >> 8 ^ table->after[0][crc & 255];
        }
    }
}

uint32_t crc_add(const crc_table *table, uint32_t crc, const void *data, size_t bytes) {
    const unsigned char *next = (const unsigned char *)data;
    crc = ~crc;
    for (; bytes >= 8; bytes -= 8, next += 8) {
        uint32_t mixed = 0;
        for (int i = 0; i < 4; i++) {
            mixed ^= table->after[7 - i][(crc >> 8 * i & 255) ^ next[i]] ^ table->after[3 - i][next[4 + i]];
        }
        crc = mixed;
    }
    for (; bytes > 0; bytes--, next++) {
        crc = crc >> 8 ^ table->after[0][(crc & 255) ^ *next];
    }
    return ~crc;
}
