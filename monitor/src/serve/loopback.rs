//! An address of the loopback interface where metrics are scraped, for readers that know no Unix sockets. Everybody on this
//! machine may read there, so nothing else is told.

use super::problem::Problem;
use axum::{
    extract::Request,
    http::{StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use std::net::{IpAddr, SocketAddr, TcpListener};

/// Why nothing can be scraped.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen at {address}: free it, or choose another with metrics.listen")]
pub struct BindError {
    address: SocketAddr,
    source: std::io::Error,
}

/// A socket that listens at a loopback address.
#[derive(Debug)]
pub struct Loopback(TcpListener);

impl Loopback {
    /// Listens. Those who connect wait until they are served.
    pub fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let bound = TcpListener::bind(address).and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
        bound.map(Self).map_err(|source| BindError { address, source })
    }

    /// The socket, for the tokio runtime that this is called in.
    pub(super) fn into_socket(self) -> std::io::Result<tokio::net::TcpListener> {
        tokio::net::TcpListener::from_std(self.0)
    }
}

/// Lets pass only what was meant for this machine: a web page whose name was made to lead here (DNS rebinding) has the
/// browser send that name.
pub(super) async fn check_host(request: Request, next: Next) -> Response {
    let header = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let host = request.uri().authority().map(Authority::as_str).or(header).unwrap_or_default();
    if is_own(host) {
        return next.run(request).await;
    }
    let detail = "the Host header names another machine: ask localhost, or the address that metrics.listen has";
    Problem::new(StatusCode::MISDIRECTED_REQUEST, detail).into_response()
}

/// Whether a host, perhaps with a port, is the loopback interface by name or address.
fn is_own(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host();
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || address.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_loopback_interface_is_our_own() {
        for host in ["localhost", "LOCALHOST:9117", "127.0.0.1", "127.0.0.1:9117", "127.1.2.3:1", "[::1]", "[::1]:9117"]
        {
            assert!(is_own(host), "{host}");
        }
        for host in ["", "evil.example", "localhost.evil.example:9117", "10.0.0.1:9117", "[fe80::1]", "0.0.0.0", "::1"]
        {
            assert!(!is_own(host), "{host:?}");
        }
    }

    #[test]
    fn an_address_in_use_is_told_in_one_line() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = Loopback::bind(address).unwrap_err();
        let told = format!("cannot listen at {address}: free it, or choose another with metrics.listen");
        assert_eq!(error.to_string(), told);
    }
}
