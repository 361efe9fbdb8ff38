//! The machine, the checkout and the page: what a table needs to say where it comes from; it measures nothing.

use crate::error::LoadError;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The directory of this crate, when it was built.
const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// Builds the proxy, so that no older one is measured, and says where it lies: beside this program.
///
/// # Errors
/// When it cannot be built, or this program lies in no target directory.
pub(crate) fn build() -> Result<PathBuf, LoadError> {
    let own = std::env::current_exe().map_err(LoadError::io("find the own program"))?;
    let target = own.parent().and_then(Path::parent);
    let target = target.ok_or_else(|| LoadError::Unreadable(format!("{}", own.display())))?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    println!("building breaker-proxy");
    let built = Command::new(cargo)
        .args(["build", "--release", "--package", "breaker-proxy", "--manifest-path"])
        .arg(Path::new(HERE).join("../Cargo.toml"))
        .arg("--target-dir")
        .arg(target)
        .stdin(Stdio::null())
        .status()
        .map_err(LoadError::io("build breaker-proxy"))?;
    if built.success() {
        Ok(target.join("release/breaker-proxy"))
    } else {
        Err(LoadError::Proxy("it could not be built".to_owned()))
    }
}

/// Where install.sh puts what it builds and fetches.
pub(crate) fn programs() -> PathBuf {
    Path::new(HERE).join("../target/rivals")
}

/// Processor, cores, kernel.
pub(crate) fn about() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    format!(
        "{cores} cores of {}, Linux {}, congestion control {}.",
        model(&read("/proc/cpuinfo")),
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/sys/net/ipv4/tcp_congestion_control").trim()
    )
}

/// Date and commit.
pub(crate) fn stamp() -> String {
    let said = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).stdin(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let date = said("date", &["-u", "+%Y-%m-%d"]).unwrap_or_default();
    let commit = said("git", &["-C", HERE, "rev-parse", "--short", "HEAD"]).unwrap_or_default();
    let changed = ["-C", HERE, "status", "--porcelain", "../breaker-core", "../breaker-proxy"];
    let changed = said("git", &changed).is_some_and(|list| !list.is_empty());
    format!("{date}, {commit}{}", if changed { ", changed" } else { "" })
}

/// Lets this process, and what it starts, have as many descriptors as it may; gives the number.
pub(crate) fn raise_descriptors() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 0 };
    if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft }
}

/// Changes the README of this crate.
///
/// # Errors
/// When it cannot be read or written, or has no place for the table.
pub(crate) fn write(change: impl FnOnce(&str) -> Option<String>) -> Result<(), LoadError> {
    let path = Path::new(HERE).join("README.md");
    let page = fs::read_to_string(&path).map_err(LoadError::io("read README.md"))?;
    let changed = change(&page);
    let page =
        changed.ok_or_else(|| LoadError::Unreadable("where the table belongs".to_owned()))?;
    fs::write(&path, page).map_err(LoadError::io("write README.md"))
}

/// The first processor's model.
fn model(cpuinfo: &str) -> &str {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(": ")).map_or("an unknown processor", |(_, model)| model)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the model is what stands behind the colon.
    #[test]
    fn the_model_is_read() {
        let text = "processor\t: 0\nmodel name\t: Some Processor 9\nflags\t\t: fpu\n";
        assert_eq!(model(text), "Some Processor 9");
        assert_eq!(model(""), "an unknown processor");
    }

    /// Goal: the table has its place in the page of this crate.
    #[test]
    fn the_page_has_a_place() {
        let page = fs::read_to_string(Path::new(HERE).join("README.md")).unwrap();
        let sheet = crate::rivals::sheet::Sheet::default();
        assert!(sheet.written_into(&page, "", "").is_some());
    }
}
