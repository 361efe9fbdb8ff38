//! Stub.
/// Stub.
#[derive(Clone, Debug, PartialEq)]
pub struct DetectorSpec {}
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Detector {}
impl Detector {
    pub(crate) fn new(_: &DetectorSpec) -> Result<Detector, (String, String)> {
        Ok(Detector {})
    }
}
