//! SQL92 filters: the first line is the expression, the rest the properties that it is asked about. Nothing may panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringmq::wire::sql::CompiledFilter;

fuzz_target!(|data: &[u8]| {
    let end = data.iter().position(|&byte| byte == b'\n').unwrap_or(data.len());
    let (text, properties) = data.split_at(end);
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    if let Ok(filter) = CompiledFilter::compile(text) {
        let first = filter.matches(properties);
        assert_eq!(first, filter.matches(properties));
    }
});
