//! The smallest reverse proxy on Pingora: one upstream, keep-alive on both sides, X-Forwarded-For; no limits.

use async_trait::async_trait;
use pingora::apps::HttpServerOptions;
use pingora::http::RequestHeader;
use pingora::prelude::*;
use pingora::server::configuration::ServerConf;
use std::net::SocketAddr;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Everything goes here.
struct Plain {
    upstream: SocketAddr,
}

#[async_trait]
impl ProxyHttp for Plain {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _session: &mut Session, (): &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.upstream, false, String::new())))
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream_request: &mut RequestHeader,
        (): &mut (),
    ) -> Result<()> {
        let client = session.client_addr().and_then(|addr| addr.as_inet()).map(|addr| addr.ip());
        match client {
            Some(ip) => upstream_request.insert_header("X-Forwarded-For", ip.to_string()),
            None => Ok(()),
        }
    }
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (Some(listen), Some(Ok(upstream))) = (args.next(), args.next().map(|addr| addr.parse()))
    else {
        eprintln!("usage: pingora-plain LISTEN UPSTREAM (two addresses)");
        return ExitCode::from(2);
    };
    let conf = ServerConf {
        threads: 2,
        upstream_keepalive_pool_size: 512,
        // It is asked to end when the measurement is over: nothing is in flight then.
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(0),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, Plain { upstream });
    if let Some(logic) = service.app_logic_mut() {
        // HTTP/2 without TLS, told apart by its preface.
        let mut options = HttpServerOptions::default();
        options.h2c = true;
        logic.server_options = Some(options);
    }
    service.add_tcp(&listen);
    server.add_service(service);
    server.run_forever()
}
