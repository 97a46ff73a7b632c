"""Wire structures, as Cython sees them. The truth is in _layout.h."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "_layout.h" nogil:
    ctypedef struct Desc "struct vn_desc":
        uint64_t addr
        uint32_t len
        uint16_t flags
        uint16_t next

    ctypedef struct Avail "struct vn_avail":
        uint16_t flags
        uint16_t idx
        uint16_t *ring

    ctypedef struct UsedElem "struct vn_used_elem":
        uint32_t id
        uint32_t len

    ctypedef struct Used "struct vn_used":
        uint16_t flags
        uint16_t idx
        UsedElem *ring

    ctypedef struct PackedDesc "struct vn_packed_desc":
        uint64_t addr
        uint64_t word

    ctypedef struct NetHdr "struct vn_net_hdr":
        uint8_t flags
        uint8_t gso_type
        uint16_t hdr_len
        uint16_t gso_size
        uint16_t csum_start
        uint16_t csum_offset
        uint16_t num_buffers

    ctypedef struct Header "struct vn_header":
        NetHdr net
        uint32_t hash_value
        uint16_t hash_report
        uint16_t padding

    enum:
        DESC_NEXT "VN_DESC_NEXT"
        DESC_WRITE "VN_DESC_WRITE"
        DESC_INDIRECT "VN_DESC_INDIRECT"
        AVAIL_NO_INTERRUPT "VN_AVAIL_NO_INTERRUPT"
        USED_NO_NOTIFY "VN_USED_NO_NOTIFY"
        PACKED_AVAIL "VN_PACKED_AVAIL"
        PACKED_USED "VN_PACKED_USED"
        PACKED_ID_SHIFT "VN_PACKED_ID_SHIFT"
        PACKED_FLAGS_SHIFT "VN_PACKED_FLAGS_SHIFT"
        EVENT_ENABLE "VN_EVENT_ENABLE"
        EVENT_DISABLE "VN_EVENT_DISABLE"
        EVENT_DESC "VN_EVENT_DESC"
