//! A client's connection as bytes, in clear or by TLS; it knows nothing of HTTP.

use crate::inspect::certificate::Identity;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// A client's connection.
pub enum Channel {
    /// In clear.
    Plain(TcpStream),
    /// By TLS.
    Tls(Box<TlsStream<Counted>>),
}

/// A socket under TLS, and how many bytes the kernel took of it: TLS itself takes more, and keeps it.
pub struct Counted {
    io: TcpStream,
    taken: u64,
}

impl Counted {
    /// A socket of which the kernel took nothing yet.
    #[must_use]
    pub fn new(io: TcpStream) -> Counted {
        Counted { io, taken: 0 }
    }

    fn count(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(taken)) = written {
            self.taken = self.taken.wrapping_add(u64::try_from(taken).unwrap_or(u64::MAX));
        }
        written
    }
}

impl Channel {
    /// The socket below.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        match self {
            Channel::Plain(stream) => stream,
            Channel::Tls(stream) => &stream.get_ref().0.io,
        }
    }

    /// What the certificate says that the client showed; `None` if it showed none.
    #[must_use]
    pub fn certificate(&self) -> Option<Box<Identity>> {
        match self {
            Channel::Plain(_) => None,
            Channel::Tls(stream) => {
                let shown = stream.get_ref().1.peer_certificates()?.first()?;
                Some(Box::new(Identity::read(shown)))
            }
        }
    }

    /// A number that grows whenever the kernel takes encrypted bytes; of what is in clear each write tells.
    #[must_use]
    pub fn taken(&self) -> u64 {
        match self {
            Channel::Plain(_) => 0,
            Channel::Tls(stream) => stream.get_ref().0.taken,
        }
    }

    /// Does each write cost a record of its own, so that pieces are better put together first?
    #[must_use]
    pub fn wants_one_piece(&self) -> bool {
        matches!(self, Channel::Tls(_))
    }
}

impl AsyncRead for Channel {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Channel::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Channel::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Channel {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Channel::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Channel::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Channel::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Channel::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Channel::Plain(stream) => stream.is_write_vectored(),
            Channel::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Channel::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Channel::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Channel::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Channel::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let own = self.get_mut();
        let written = Pin::new(&mut own.io).poll_write(cx, buf);
        own.count(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let own = self.get_mut();
        let written = Pin::new(&mut own.io).poll_write_vectored(cx, bufs);
        own.count(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
