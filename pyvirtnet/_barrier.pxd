"""Fences, atomics, volatile accesses and doorbells. The truth is in _barrier.h."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "_barrier.h" nogil:
    uint16_t observe "vn_observe"(const uint16_t *index) noexcept
    void publish "vn_publish"(uint16_t *index, uint16_t value) noexcept
    uint64_t observe64 "vn_observe64"(const uint64_t *word) noexcept
    void publish64 "vn_publish64"(uint64_t *word, uint64_t value) noexcept
    void poke64 "vn_poke64"(uint64_t *word, uint64_t value) noexcept
    uint32_t peek32 "vn_peek32"(const uint32_t *word) noexcept
    void poke32 "vn_poke32"(uint32_t *word, uint32_t value) noexcept
    void full_fence "vn_full_fence"() noexcept
    uint16_t peek "vn_peek"(const uint16_t *word) noexcept
    void poke "vn_poke"(uint16_t *word, uint16_t value) noexcept
    uint64_t read_once "vn_read_once"(const void *element) noexcept
    uint32_t drop "vn_drop"(uint32_t *count, uint32_t by) noexcept
    void hold "vn_hold"(uint32_t *count, uint32_t by) noexcept
    bint enter "vn_enter"(uint8_t *busy) noexcept
    void leave "vn_leave"(uint8_t *busy) noexcept
    void lock "vn_lock"(uint8_t *lock) noexcept
    bint locked "vn_locked"(const uint8_t *lock) noexcept
    void unlock "vn_unlock"(uint8_t *lock) noexcept
    void prefetch "vn_prefetch"(const void *address) noexcept
    void mmio_store16 "vn_mmio_store16"(uint64_t address, uint16_t value) noexcept
    void mmio_store32 "vn_mmio_store32"(uint64_t address, uint32_t value) noexcept
    void eventfd_add "vn_eventfd_add"(int fd) noexcept
    void copy_head "vn_copy_head"(uint8_t *to, const uint8_t *source, uint32_t length) noexcept
