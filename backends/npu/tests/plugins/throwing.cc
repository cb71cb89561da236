// A plugin in C++ that lets an exception out of one function, THROWS.
#include "halite_plugin.h"

#include <cstdlib>
#include <stdexcept>

namespace {

// Each stands for every function of the table that it is assigned to.
template <class Result, class... Arguments> Result throws(Arguments...) { throw std::runtime_error("uncaught"); }
template <class... Arguments> halite_status succeeds(Arguments...) { return HALITE_STATUS_OK; }
template <class... Arguments> void gives_back(Arguments...) {}

std::uint64_t next_handle = 1;

halite_status count(std::uint32_t *out, halite_error *) { return *out = 1, HALITE_STATUS_OK; }

halite_status info(std::uint32_t, std::uint32_t, const halite_option *const *, halite_device_info *out, halite_error *) {
    out->memory_bytes = out->max_allocation_bytes = 1 << 20;
    out->offset_alignment_bytes = 1;
    out->memory_kind_mask = 1;
    out->compute_units = 1;
    out->max_arguments = 4;
    return HALITE_STATUS_OK;
}

halite_status open(std::uint32_t, std::uint32_t, const halite_option *const *, halite_device *out, halite_error *) {
    return *out = next_handle++, HALITE_STATUS_OK;
}

halite_status allocate(halite_device, std::uint32_t, std::uint64_t, halite_memory *out, void **, halite_error *) {
    return *out = next_handle++, HALITE_STATUS_OK;
}

halite_status make(halite_device, std::uint64_t *out, halite_error *) { return *out = next_handle++, HALITE_STATUS_OK; }

halite_plugin table;

} // namespace

extern "C" halite_status halite_plugin_entry(const halite_host *, const halite_plugin **out, halite_error *) {
#ifdef THROWS_ENTRY
    throw 7;
#endif
    table.struct_size = sizeof table;
    table.abi_major = HALITE_ABI_MAJOR;
    table.device_count = count;
    table.device_info = info;
    table.device_open = open;
    table.device_close = gives_back;
    table.memory_alloc = allocate;
    table.memory_free = gives_back;
    table.memory_info = succeeds;
    table.stream_create = make;
    table.stream_destroy = gives_back;
    table.stream_write = succeeds;
    table.stream_read = succeeds;
    table.stream_copy = succeeds;
    table.stream_fill = succeeds;
    table.stream_wait_event = succeeds;
    table.stream_synchronize = succeeds;
    table.event_create = make;
    table.event_destroy = gives_back;
    table.event_record = succeeds;
    table.event_wait = succeeds;
    table.event_query = succeeds; // pending
#ifdef THROWS
    table.THROWS = throws;
#endif
    *out = &table;
    return HALITE_STATUS_OK;
}
