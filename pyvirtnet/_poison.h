/* Tells AddressSanitizer which DMA memory nobody holds; nothing in builds without it. */
#ifndef PYVIRTNET_POISON_H
#define PYVIRTNET_POISON_H

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#define vn_poison(address, size) __asan_poison_memory_region(address, size)
#define vn_unpoison(address, size) __asan_unpoison_memory_region(address, size)
#else
#define vn_poison(address, size) ((void)(address), (void)(size))
#define vn_unpoison(address, size) ((void)(address), (void)(size))
#endif

#endif
