//! Developer commands of tlsplice: `cargo xtask --help` lists them.

mod attacks;
mod bench;
mod check;
mod compiler;
mod coverage;
mod ebpf;
mod faults;
mod fuzz;
mod layout;
mod profile;
mod run;
mod sbom;
mod soak;
mod tls_check;
mod tools;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Developer commands of tlsplice.
///
/// Each command installs what it needs (Debian packages by apt-get, which needs root, and cargo tools under target/tools)
/// and says so. Nothing is written outside `target/` otherwise.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the gateway and serve: an embedded demo, a Tomcat, or what you have.
    ///
    /// Without options: makes a self-signed development certificate, starts an embedded demo upstream, and tells the
    /// address to open. Ctrl-C finishes what is open and exits with 0; a second one ends at once.
    Run(run::Options),
    /// Run every check and test: format, lints, dependencies, unit, property and end-to-end tests.
    ///
    /// The end-to-end tests run a real Tomcat and a headless Chromium. The last line is the summary; exit status 0
    /// means that everything passed.
    Test(check::Options),
    /// Build the gateway as it is to be installed: `target/release/tlsplice`.
    ///
    /// Unlike `cargo build --release`, with the records of what the gateway does often, which are in `proxy/` for one version
    /// of the compiler: one for the compiler, one to put the code into another order after it is linked. The latter takes
    /// LLVM's BOLT, Debian's package, installed when missing.
    Build,
    /// Record what the gateway does often, for the compiler that is in use. Takes some fifteen minutes.
    ///
    /// Builds a gateway that counts, has the benchmark use it, and writes `proxy/rustc-VERSION.profdata`; then the same once
    /// more with what that gave, for `proxy/rustc-VERSION.layout.gz`. Needs root, LLVM's programs of the compiler's version
    /// (rustup's component llvm-tools, or Debian's package), and BOLT and strace (Debian's), which are installed when missing.
    Profile(profile::Options),
    /// Build the programs that the kernel runs, check the object that is checked in, or print what they cost.
    ///
    /// Needs a compiler for BPF: Debian's (rustc-web, installed when missing), one named by EBPF_RUSTC, or a nightly
    /// with rust-src; and bpf-linker, which is built under `target/tools`. The gateway itself is built with the object
    /// beside the sources and needs none of this.
    Ebpf(ebpf::Options),
    /// Run the attack table, and print what came of each group.
    ///
    /// The rows are in `tests/attacks/`: what hostile clients and upstreams send, and what must come of it. Here, where
    /// TLS is in user space on most machines, or with `--kernel` in guests, with TLS in the kernel too.
    Attacks(attacks::Options),
    /// Print which part of the gateway its unit tests reach, for each module.
    ///
    /// Needs LLVM's programs of the compiler's version: rustup's component llvm-tools, or Debian's package, installed when
    /// missing.
    Coverage(coverage::Options),
    /// Try the parsers and the relay with bytes that nobody thought of, guided by the code they reach.
    ///
    /// Works with stable Rust and a C++ compiler. Without a target all of them run in turn. Inputs are kept under
    /// `target/fuzz`, those that break a property under `target/fuzz/crashes`; exit status 1 when there are any.
    Fuzz(fuzz::Options),
    /// Run the fault table, and print what came of each row.
    ///
    /// The rows are in `tests/faults/rows.txt`: what breaks around a gateway, what must hold then, and which tests show
    /// it. A row counts as passed only by tests that have run. Root is needed for networks of their own and the like.
    Faults(faults::Options),
    /// Run mixed load under a schedule of faults, for as long as you like.
    ///
    /// Clients of all kinds, well behaved and not, an upstream whose network breaks, and reloads; after each round
    /// everything that was seen must agree, and the gateway must be at rest. The schedule follows from the seed. Exit
    /// status 0 means no failure and no byte lost; the figures are in `target/soak.json`, too.
    Soak(soak::SoakOptions),
    /// Open thousands of tunnels, use some of them, and let hostile clients of every kind do their worst.
    ///
    /// Measures what an idle tunnel costs, and how long messages take without hostile clients and beside them: floods of
    /// handshakes, heads and bodies that come byte by byte, and readers that read slowly or never. Exit status 0 means
    /// that 99 of 100 messages took less than three times as long. The figures are in `target/load.json`, too.
    Load(soak::LoadOptions),
    /// Run the gateway and its end-to-end tests on other kernels, under software emulation.
    ///
    /// Debian's kernels 5.10, 6.1, 6.12 and the newest are fetched as packages into `target/vm`, without touching the
    /// system, and booted with the tests inside, with TLS in the kernel and in user space.
    Vm(vm::Options),
    /// Have scanners by other hands judge the gateway's TLS: testssl.sh and sslyze.
    ///
    /// Findings of medium severity or worse fail it, and so does what Mozilla's "intermediate" configuration does not
    /// have; what is passed over is named with the reason. Takes some minutes. testssl.sh comes from Debian, sslyze from
    /// PyPI into `target/tools`.
    TlsCheck,
    /// Write what the gateway is made of as a CycloneDX document, and count it.
    Sbom(sbom::Options),
    /// Compare the gateway with nginx, HAProxy and Apache on this machine: CPU, memory and latency.
    #[command(disable_help_flag = true)]
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run(options) => run::run(&options),
        Command::Test(options) => check::run(&options),
        Command::Build => profile::build(),
        Command::Profile(options) => profile::record(&options),
        Command::Ebpf(options) => ebpf::command(&options),
        Command::Bench(options) => bench::run(&options),
        Command::TlsCheck => tls_check::run(),
        Command::Sbom(options) => sbom::run(&options),
        Command::Attacks(options) => attacks::command(&options),
        Command::Coverage(options) => coverage::command(&options),
        Command::Fuzz(options) => fuzz::command(&options),
        Command::Faults(options) => faults::run(&options),
        Command::Soak(options) => soak::soak(&options),
        Command::Load(options) => soak::load(&options),
        Command::Vm(options) => vm::command(&options),
    };
    match result {
        Ok(status) => status,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
