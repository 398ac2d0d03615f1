//! Compiles `proto/` into Rust code and a descriptor set that keeps its comments and options.

use std::{env, io, path::PathBuf};

const PROTOS: [&str; 6] = [
    "kontrol/v1/action.proto",
    "kontrol/v1/keepalive.proto",
    "kontrol/v1/ensemble.proto",
    "kontrol/v1/operate.proto",
    "kontrol/internal/v1/exchange.proto",
    "kontrol/internal/v1/peer.proto",
];

fn main() -> io::Result<()> {
    let root =
        PathBuf::from(env::var("CARGO_MANIFEST_DIR").map_err(io::Error::other)?).join("../proto");
    let out = PathBuf::from(env::var("OUT_DIR").map_err(io::Error::other)?);
    let protos: Vec<PathBuf> = PROTOS.iter().map(|name| root.join(name)).collect();
    println!("cargo:rerun-if-changed={}", root.display());
    tonic_prost_build::configure()
        .file_descriptor_set_path(out.join("kontrol.binpb"))
        // Output is passed from hand to hand without a copy.
        .bytes(".kontrol")
        .compile_protos(&protos, &[root])
}
