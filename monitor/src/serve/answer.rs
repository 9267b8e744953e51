//! Bodies of answers: written piece by piece as the client reads, so that a list of 100,000 costs no more than one piece.

use super::{
    health::CoverageView,
    select::Chosen,
    stats::Stats,
    view::{Context, ListView, Listed, SnapshotView},
};
use crate::{
    gpu::Gpu,
    model::snapshot::{BlockDevice, Cgroup, Process, Snapshot, Tree},
};
use axum::{
    body::{Body, Bytes},
    http::header,
    response::{IntoResponse as _, Response},
};
use futures_util::stream;
use serde::Serialize;
use std::{iter, sync::Arc};

/// Items written at once: a piece is some 150 KiB.
const ITEMS_PER_PIECE: usize = 64;

/// A piece of a body. An error ends the connection, so that the client sees that the answer is not whole.
type Piece = serde_json::Result<Bytes>;

/// A JSON document that fits one piece.
pub(super) fn document(value: &impl Serialize) -> Response {
    respond(iter::once(piece(value)))
}

/// A list, with what is told besides it.
pub(super) fn list<T: Listed>(snapshot: Arc<Snapshot>, chosen: Chosen) -> Response {
    let head = piece(&ListView {
        time_ns: snapshot.time,
        total: chosen.total,
        truncated: chosen.places.len() < chosen.total,
        standing: T::standing(&snapshot),
        coverage: CoverageView(&snapshot.coverage),
    });
    respond(iter::once(head.map(open)).chain(array::<T>(snapshot, chosen.places)).chain(iter::once(close())))
}

/// The stats of a tree, with its processes.
pub(super) fn stats(snapshot: Arc<Snapshot>, stats: &Stats, chosen: Chosen) -> Response {
    let head = iter::once(piece(stats).map(open));
    respond(head.chain(array::<Process>(snapshot, chosen.places)).chain(iter::once(close())))
}

/// A document that was written before, with one more field.
pub(super) fn extended(object: Bytes, name: &str, value: &impl Serialize) -> Response {
    let field = piece(value).map(|value| [format!(",\"{name}\":").as_bytes(), &value, b"}"].concat().into());
    respond([Ok(open(object)), field].into_iter())
}

/// All of a snapshot.
pub(super) fn whole(snapshot: Arc<Snapshot>) -> Response {
    let head = piece(&SnapshotView::of(&snapshot)).map(open);
    let pieces = iter::once(head)
        .chain(all::<Process>(&snapshot))
        .chain(all::<Tree>(&snapshot))
        .chain(all::<Cgroup>(&snapshot))
        .chain(all::<BlockDevice>(&snapshot))
        .chain(all::<Gpu>(&snapshot))
        .chain(iter::once(close()));
    respond(pieces)
}

fn respond(pieces: impl Iterator<Item = Piece> + Send + 'static) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(stream::iter(pieces))).into_response()
}

fn piece(value: &impl Serialize) -> Piece {
    serde_json::to_vec(value).map(Bytes::from)
}

/// An object without its closing brace, for more fields to follow.
fn open(object: Bytes) -> Bytes {
    object.slice(..object.len() - 1)
}

fn close() -> Piece {
    Ok(Bytes::from_static(b"}"))
}

fn all<T: Listed>(snapshot: &Arc<Snapshot>) -> impl Iterator<Item = Piece> + Send + 'static {
    array::<T>(Arc::clone(snapshot), (0..T::all(snapshot).len() as u32).collect())
}

/// `,"name":[…]`, in pieces.
fn array<T: Listed>(snapshot: Arc<Snapshot>, places: Vec<u32>) -> impl Iterator<Item = Piece> + Send + 'static {
    let context = Context::of(&snapshot);
    let name = iter::once(Ok(Bytes::from(format!(",\"{}\":[", T::NAME))));
    let items = (0..places.len()).step_by(ITEMS_PER_PIECE).map(move |start| {
        let end = places.len().min(start + ITEMS_PER_PIECE);
        let mut out = Vec::new();
        for (at, &place) in (start..end).zip(&places[start..end]) {
            if at > 0 {
                out.push(b',');
            }
            T::all(&snapshot)[place as usize].write(context, &mut out)?;
        }
        Ok(Bytes::from(out))
    });
    name.chain(items).chain(iter::once(Ok(Bytes::from_static(b"]"))))
}
