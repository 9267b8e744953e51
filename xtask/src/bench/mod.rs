pub(crate) type X=();
