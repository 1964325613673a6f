//! Writes small MaxMind DB files.
#![allow(dead_code, unused_imports, reason = "each test crate uses its part")]

/// A value of the data section.
#[derive(Clone)]
pub(crate) enum Value {
    Text(&'static str),
    Number(u16),
    Map(Vec<(&'static str, Value)>),
}

pub(crate) use Value::{Map, Number, Text};

/// A record in the layout of MaxMind's files.
pub(crate) fn iso(code: &'static str) -> Value {
    Map(vec![("country", Map(vec![("iso_code", Text(code))]))])
}

impl Value {
    fn encode(&self, to: &mut Vec<u8>) {
        match self {
            Text(text) => {
                match u8::try_from(text.len()).unwrap() {
                    short @ 0..29 => to.push(0x40 | short),
                    long => to.extend([0x40 | 29, long - 29]),
                }
                to.extend(text.bytes());
            }
            Number(number) => {
                to.push(0xa2);
                to.extend(number.to_be_bytes());
            }
            Map(entries) => {
                to.push(0xe0 | u8::try_from(entries.len()).unwrap());
                for (key, value) in entries {
                    Text(key).encode(to);
                    value.encode(to);
                }
            }
        }
    }
}

/// A file with these networks, which do not overlap. Its type is "Test". An IPv6 file has IPv4
/// below `::/96`, like real ones.
pub(crate) fn file(ip_version: u16, networks: &[(&str, Value)]) -> Vec<u8> {
    // A child is another node, an offset in the data section, or nothing.
    #[derive(Clone, Copy)]
    enum Child {
        Node(usize),
        Data(usize),
        Nothing,
    }
    let mut nodes = vec![[Child::Nothing; 2]];
    let mut data = Vec::new();
    for (network, value) in networks {
        let (ip, prefix) = network.split_once('/').unwrap();
        let (ip, length) = (ip.parse::<std::net::IpAddr>().unwrap(), prefix.parse().unwrap());
        let (bits, length) = match ip {
            std::net::IpAddr::V4(v4) if ip_version == 4 => (u128::from(v4.to_bits()) << 96, length),
            std::net::IpAddr::V4(v4) => (u128::from(v4.to_bits()), length + 96),
            std::net::IpAddr::V6(v6) => (v6.to_bits(), length),
        };
        let mut node = 0;
        for depth in 0..length {
            let side = usize::from(bits >> (127 - depth) & 1 == 1);
            nodes[node][side] = match nodes[node][side] {
                _ if depth + 1 == length => Child::Data(data.len()),
                Child::Nothing => {
                    nodes.push([Child::Nothing; 2]);
                    Child::Node(nodes.len() - 1)
                }
                child => child,
            };
            if let Child::Node(next) = nodes[node][side] {
                node = next;
            }
        }
        value.encode(&mut data);
    }
    let mut file = Vec::new();
    for child in nodes.iter().flatten() {
        let record = match *child {
            Child::Node(node) => node,
            Child::Nothing => nodes.len(),
            Child::Data(at) => nodes.len() + 16 + at,
        };
        file.extend(&u32::try_from(record).unwrap().to_be_bytes()[1..]);
    }
    file.extend([0; 16]);
    file.extend(data);
    file.extend(b"\xab\xcd\xefMaxMind.com");
    file.push(0xe9);
    let entry = |file: &mut Vec<u8>, key, value: &[u8]| {
        Text(key).encode(file);
        file.extend(value);
    };
    let number = |number: u16| [&[0xa2][..], &number.to_be_bytes()].concat();
    entry(&mut file, "binary_format_major_version", &number(2));
    entry(&mut file, "binary_format_minor_version", &number(0));
    entry(&mut file, "build_epoch", &[0x04, 0x02, 0x60, 0, 0, 0]);
    entry(&mut file, "database_type", b"\x44Test");
    entry(&mut file, "description", &[0xe0]);
    entry(&mut file, "ip_version", &number(ip_version));
    entry(&mut file, "languages", &[0x00, 0x04]);
    let count = u32::try_from(nodes.len()).unwrap().to_be_bytes();
    entry(&mut file, "node_count", &[&[0xc4][..], &count].concat());
    entry(&mut file, "record_size", &number(24));
    file
}
