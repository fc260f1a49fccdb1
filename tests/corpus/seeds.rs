//! The inputs that fuzzing begins with: what a small real store writes, and one script of each kind.

use std::fs;
use std::path::PathBuf;

use crate::directory::Flags;
use crate::fixture::{Fixture, Left};

const SEALED: u8 = 1;
const WITH_INDEX: u8 = 1 << 2 | 1 << 3;

/// Longer inputs make for slow fuzzing.
const BYTES_MAX: usize = 1500;

type Seeds = Vec<Vec<u8>>;

#[test]
#[ignore = "writes files: see the top of this test"]
fn write_the_seeds() {
    let to = std::env::var_os("MILLPOND_SEEDS").expect("MILLPOND_SEEDS names a directory");
    let stores = [Left::Closed, Left::Killed].map(Fixture::new);
    let all = [
        ("frame", frames(&stores)),
        ("segment", segments(&stores)),
        ("cursor", cursors(&stores)),
        ("directory", directories(&stores)),
        ("operations", operations()),
    ];
    for (target, seeds) in all {
        let dir = PathBuf::from(&to).join(target);
        fs::create_dir_all(&dir).unwrap();
        for (n, seed) in seeds.iter().enumerate() {
            fs::write(dir.join(format!("seed-{n:03}")), seed).unwrap();
        }
        println!("{target}: {} seeds", seeds.len());
    }
}

/// The frames of the stores, a few of each kind, and one of each kind that no store writes yet.
fn frames(stores: &[Fixture]) -> Seeds {
    let mut seeds = Seeds::new();
    for store in stores {
        for (name, frames) in &store.frames {
            for frame in frames.iter().filter(|frame| frame.end - frame.start < 200) {
                let bytes = &store.files[name][frame.start..frame.end];
                let alike = |seed: &&Vec<u8>| seed[6..8] == bytes[4..6];
                if seeds.iter().filter(alike).count() < 4 {
                    seeds.push([&[SEALED, 0], bytes].concat());
                }
            }
        }
    }
    for (kind, info, body) in not_yet_written() {
        let mut bytes = vec![SEALED | 2, 8, 0, 0, 0, 0, kind, 0];
        bytes.extend_from_slice(&u16::to_le_bytes(info));
        bytes.extend_from_slice(&[0; 12]);
        bytes.extend_from_slice(body);
        seeds.push(bytes);
    }
    seeds
}

/// Kind, info and body of what `docs/format.md` has and this version does not write.
fn not_yet_written() -> Vec<(u8, u16, &'static [u8])> {
    const TIME: &[u8; 6] = b"\x01\x68\xe5\xcf\x8b\x01";
    let every_field: &'static [u8] = b"\x01\x68\xe5\xcf\x8b\x01\x02\x01\x04\x02\x00\
        \x01\x68\xe5\xcf\x8b\x01\x01\x68\xe5\xcf\x8b\x01\x02k1\x02g1\x07\x01\x01q\x03why\
        \x15\x04\x01s\x00\x02en\x01b\x01\x02xx\x01i\x02\x03\x01t\x03\x01payload";
    assert!(every_field.starts_with(TIME));
    vec![
        (1, 0x07F0, every_field),
        (6, 0, b"\x02ex\x01\x01pattern"),
        (7, 0, b"\x02ex\x01\x01pattern"),
        (8, 0, b"\x01"),
        (9, 0, b"\x01"),
        (10, 0, b"\x03keyvalue"),
    ]
}

/// The beginnings of the stores' segments, with and without the index beside them.
fn segments(stores: &[Fixture]) -> Seeds {
    let mut seeds = Seeds::new();
    for store in stores {
        for (name, frames) in store.frames.iter().filter(|(_, frames)| !frames.is_empty()) {
            let bytes = &store.files[name];
            let short = frames.iter().map(|frame| frame.end).filter(|end| *end < 4096 + BYTES_MAX);
            let end = short.max().unwrap_or(4096).next_multiple_of(8).min(bytes.len());
            let (header, frames) = (&bytes[..128], &bytes[4096..end]);
            for flags in [0, SEALED] {
                seeds.push([&[flags, 0, 1], header, frames].concat());
                let index = store.files.get(&name.replace(".seg", ".idx"));
                let Some(index) = index.filter(|index| index.len() < BYTES_MAX) else { continue };
                let length = (index.len() as u16).to_le_bytes();
                let flags = flags | WITH_INDEX;
                seeds.push([&[flags, 0, 1], header, &length, &index[..], frames].concat());
            }
        }
    }
    seeds
}

fn cursors(stores: &[Fixture]) -> Seeds {
    let files = stores.iter().flat_map(|store| {
        store.names("cursor.").into_iter().map(|name| store.files[name].as_slice())
    });
    files.flat_map(|file| [[&[0], file].concat(), [&[SEALED], file].concat()]).collect()
}

/// Each kind of edit, on each store, and a directory that is made up of the store's files.
fn directories(stores: &[Fixture]) -> Seeds {
    let mut seeds = Seeds::new();
    for sealed in [0, Flags::SEALED] {
        for store in 0..4 {
            seeds.push(vec![store | sealed]);
            for kind in 0..12 {
                let file = (kind + store) % 9;
                seeds.push(vec![store | sealed, kind, file, 3, 1, 2, 4, 7, 1, 1, 2, 3, 1, 9, 0, 1]);
            }
        }
        for (store, file) in [(0, 3), (0, 4), (0, 5), (1, 3), (1, 4), (1, 5), (1, 6), (2, 6)] {
            // Every other payload of a segment.
            let edits = (0..16).flat_map(|n| [8, file, 2 * n, 40, 2, 0xAA, 0x55]);
            seeds.push([store | sealed].into_iter().chain(edits).collect());
        }
        for kind in 1..12 {
            // A frame of that kind at the end of the log.
            let body = b"\x01\x68\xe5\xcf\x8b\x01\x01\x01\x01\x01\x01\x00";
            let frame = [&[1 | sealed, 9, 8, kind, 0, 4, 0, 90, 0, body.len() as u8], &body[..]];
            seeds.push(frame.concat());
        }
        seeds.extend(stores.iter().map(|store| made_up(store, sealed)));
    }
    seeds
}

/// A store's shortest cursor, and the beginning of its first segment.
fn made_up(store: &Fixture, sealed: u8) -> Vec<u8> {
    let mut seed = vec![Flags::EMPTY | sealed];
    let segment = &store.files[store.names(".seg")[0]];
    let content = [&segment[..128], &segment[4096..4096 + BYTES_MAX]].concat();
    seed.extend_from_slice(&[11, 1, 0]);
    seed.extend_from_slice(&(content.len() as u16).to_le_bytes());
    seed.extend_from_slice(&content);
    let cursors = store.names("cursor.");
    let cursor = cursors.iter().map(|name| &store.files[*name]).min_by_key(|file| file.len());
    let cursor = cursor.expect("a store that was maintained has a cursor");
    seed.extend_from_slice(&[10, 1, 3]);
    seed.extend_from_slice(&(cursor.len() as u16).to_le_bytes());
    seed.extend_from_slice(cursor);
    seed
}

/// Any bytes are a script.
fn operations() -> Seeds {
    let mut word = 1_u64;
    let mut byte = || {
        word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (word >> 56) as u8
    };
    let lengths = (0..24).map(|n| 40 + n * 20);
    lengths.map(|length| (0..length).map(|_| byte()).collect()).collect()
}
