//! Load and fault scenarios against a real breaker-proxy, one subcommand each; the scenarios themselves are in their
//! own files.

use clap::{Parser, Subcommand};
use std::process::ExitCode;

mod accounts;
mod admin;
mod clients;
mod cut;
mod error;
mod exactness;
mod frames;
mod intake;
mod judge;
mod kill;
mod load;
mod nginx;
mod origin;
mod proxy;
mod real;
mod report;
mod rivals;
mod soak;
mod stamp;
#[cfg(test)]
mod standin;
mod wait;
mod wire;

/// Load and fault scenarios against a real breaker-proxy.
///
/// Each prints what it does, a small table, and a last line `PASS …` or `FAIL …`. Exit code 0: passed; 1: failed or
/// could not run; 2: wrong arguments; 3: a program is not installed (run loadtests/install.sh).
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Accounts(accounts::AccountsArgs),
    Clients(real::ClientsArgs),
    Cut(cut::CutArgs),
    Exactness(exactness::ExactnessArgs),
    Kill(kill::KillArgs),
    Rivals(rivals::RivalsArgs),
    Soak(soak::SoakArgs),
}

fn main() -> ExitCode {
    let ended = match Cli::parse().command {
        Command::Accounts(args) => accounts::run(&args),
        Command::Clients(args) => real::run(&args),
        Command::Cut(args) => cut::run(&args),
        Command::Exactness(args) => exactness::run(&args),
        Command::Kill(args) => kill::run(&args),
        Command::Rivals(args) => rivals::run(&args),
        Command::Soak(args) => soak::run(&args),
    };
    ended.unwrap_or_else(|error| {
        println!("FAIL could not run: {error}");
        ExitCode::from(error.exit_code())
    })
}
