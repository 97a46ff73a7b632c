/* Wire structures of the virtqueue formats and the network header, their sizes asserted. */
#ifndef PYVIRTNET_LAYOUT_H
#define PYVIRTNET_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "pyvirtnet drives little-endian devices from little-endian machines only"
#endif

/* VIRTIO 1.3, 2.7.5 */
struct vn_desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
};
_Static_assert(sizeof(struct vn_desc) == 16, "2.7.5: a descriptor has 16 bytes");

enum { VN_DESC_NEXT = 1, VN_DESC_WRITE = 2, VN_DESC_INDIRECT = 4 };

/* 2.7.6; idx and ring[] are accessed through _barrier.h */
struct vn_avail {
    uint16_t flags;
    uint16_t idx;
    uint16_t ring[];
};
_Static_assert(offsetof(struct vn_avail, ring) == 4, "2.7.6: ring follows flags and idx");

enum { VN_AVAIL_NO_INTERRUPT = 1, VN_USED_NO_NOTIFY = 1 };

/* 2.7.8 */
struct vn_used_elem {
    uint32_t id;
    uint32_t len;
};
_Static_assert(sizeof(struct vn_used_elem) == 8, "2.7.8: a used element has 8 bytes");

struct vn_used {
    uint16_t flags;
    uint16_t idx;
    struct vn_used_elem ring[];
};
_Static_assert(offsetof(struct vn_used, ring) == 4, "2.7.8: ring follows flags and idx");

/* 2.8.13: len, id and flags are one word here, because they are read, and written, as one. */
struct vn_packed_desc {
    uint64_t addr;
    uint64_t word;
};
_Static_assert(sizeof(struct vn_packed_desc) == 16, "2.8.13: a descriptor has 16 bytes");

enum {
    VN_PACKED_AVAIL = 1 << 7,
    VN_PACKED_USED = 1 << 15,
    VN_PACKED_ID_SHIFT = 32,
    VN_PACKED_FLAGS_SHIFT = 48
};

/* 2.8.14: offset and wrap counter in the low half, flags in the high half */
enum { VN_EVENT_ENABLE = 0, VN_EVENT_DISABLE = 1, VN_EVENT_DESC = 2 };

/* 5.1.6 */
struct vn_net_hdr {
    uint8_t flags;
    uint8_t gso_type;
    uint16_t hdr_len;
    uint16_t gso_size;
    uint16_t csum_start;
    uint16_t csum_offset;
    uint16_t num_buffers;
};
_Static_assert(sizeof(struct vn_net_hdr) == 12, "5.1.6: twelve bytes on modern devices");
_Static_assert(offsetof(struct vn_net_hdr, num_buffers) == 10, "5.1.6: num_buffers is last");

/* 5.1.6: with HASH_REPORT */
struct vn_header {
    struct vn_net_hdr net;
    uint32_t hash_value;
    uint16_t hash_report;
    uint16_t padding;
};
_Static_assert(sizeof(struct vn_header) == 20, "5.1.6: twenty bytes with HASH_REPORT");

#endif
