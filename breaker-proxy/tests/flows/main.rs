//! The flows of a whole proxy on loopback, one file for each; nothing here sleeps, and no port is fixed.
//!
//! They are one program, so that what they share is built once and nothing of it is dead in any of them.

#[cfg(test)]
mod admin;
#[cfg(test)]
mod balance;
#[cfg(test)]
mod bodies;
#[cfg(test)]
mod cli;
#[cfg(test)]
mod detect;
mod exchange;
#[cfg(test)]
mod grpc;
#[cfg(test)]
mod h2_upstream;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod keys;
#[cfg(test)]
mod kill;
#[cfg(test)]
mod limit;
#[cfg(test)]
mod observe;
#[cfg(test)]
mod refuse;
#[cfg(test)]
mod request;
#[cfg(test)]
mod restart;
#[cfg(test)]
mod secure;
#[cfg(test)]
mod secure_upstream;
#[cfg(test)]
mod settle;
#[cfg(test)]
mod standings;
#[cfg(test)]
mod support;
#[cfg(test)]
mod upstream;
#[cfg(test)]
mod websocket;
