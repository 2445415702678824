/* The CRC-32 of PNG and zip (ISO 3309, reflected polynomial 0xedb88320), eight bytes at a time. */
#ifndef CRC_H
#define CRC_H

#include <stddef.h>
#include <stdint.h>

typedef struct crc_table {
    uint32_t after[8][256]; /* what a byte makes of the remainder, 0 to 7 bytes later */
} crc_table;

void crc_prepare(crc_table *table);
/* The checksum of what gave `crc` (0: nothing) and of these bytes. */
uint32_t crc_add(const crc_table *table, uint32_t crc, const void *data, size_t bytes);

#endif /* CRC_H */
