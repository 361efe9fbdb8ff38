//! The proxy under test, in this process or elsewhere; the one file that calls breaker-proxy.

use crate::admin::Admin;
use crate::error::LoadError;
use std::net::SocketAddr;
use tempfile::TempDir;

/// A proxy that answers.
pub(crate) struct Proxy {
    /// Where its data plane listens.
    pub(crate) data: SocketAddr,
    /// Its admin plane.
    pub(crate) admin: Admin,
    _inside: Option<Inside>,
}

/// A fault built into the proxy, which a test must catch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Sabotage {
    /// The upstream socket's write does not look at the gates.
    NoLastLook,
    /// A kill answers without waiting for writes that began before.
    NoWait,
}

impl Sabotage {
    /// As it is written on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Sabotage::NoLastLook => "no-last-look",
            Sabotage::NoWait => "no-wait",
        }
    }
}

/// What must live as long as a proxy in this process.
struct Inside {
    /// Stops when it is dropped, before its state directory goes.
    _running: breaker_proxy::app::Running,
    _state: TempDir,
}

/// Switches a fault on for the whole process.
#[cfg(feature = "faults")]
#[expect(clippy::unnecessary_wraps, reason = "the build without faults refuses")]
fn sabotage_with(sabotage: Option<Sabotage>) -> Result<(), LoadError> {
    breaker_proxy::faults::set_no_last_look(matches!(sabotage, Some(Sabotage::NoLastLook)));
    breaker_proxy::faults::set_no_wait(matches!(sabotage, Some(Sabotage::NoWait)));
    Ok(())
}

/// Without the faults built in there is nothing to switch on.
#[cfg(not(feature = "faults"))]
fn sabotage_with(sabotage: Option<Sabotage>) -> Result<(), LoadError> {
    match sabotage {
        None => Ok(()),
        Some(_) => Err(LoadError::Proxy(
            "this build has no faults inside: add --features faults to the cargo command"
                .to_owned(),
        )),
    }
}

impl Proxy {
    /// A proxy that somebody else runs.
    pub(crate) fn external(data: SocketAddr, admin: SocketAddr, token: &str) -> Proxy {
        Proxy { data, admin: Admin::new(admin, token), _inside: None }
    }

    /// A proxy in this process on ports of the system's choice, with a state directory of its own that goes with
    /// it. `rules` is the part of a configuration below `[listen]` and `[state]`.
    ///
    /// # Errors
    /// When the configuration is refused or the proxy does not start, in its own words.
    pub(crate) fn inside(rules: &str, sabotage: Option<Sabotage>) -> Result<Proxy, LoadError> {
        let state = TempDir::new().map_err(LoadError::io("make a state directory"))?;
        let text = configuration(rules, &state.path().display().to_string());
        sabotage_with(sabotage)?;
        let config = breaker_proxy::config::check::load(&text, "loadtests", &|name| {
            std::env::var(name).ok()
        })
        .map_err(|errors| LoadError::Proxy(errors.to_string()))?;
        let running = breaker_proxy::app::start(config)
            .map_err(|error| LoadError::Proxy(error.to_string()))?;
        Ok(Proxy {
            data: running.data_addr(),
            admin: Admin::new(running.admin_addr(), running.token()),
            _inside: Some(Inside { _running: running, _state: state }),
        })
    }
}

/// Whether these rules are a configuration that the proxy takes: what is not built it calls no key.
pub(crate) fn takes(rules: &str) -> bool {
    let text = configuration(rules, "state");
    breaker_proxy::config::check::load(&text, "loadtests", &|_| None).is_ok()
}

/// A whole configuration: ports of the system's choice, this state directory, these rules.
fn configuration(rules: &str, state: &str) -> String {
    format!(
        "[listen]\ndata = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n\n[state]\ndir = {state:?}\n\n{rules}"
    )
}
