//! Bytes as events that happen to a gateway: the parsers, the engine and its tables.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| egress_common::testing::events::replay(bytes));
