package rollout

// Closed is what keeps hours that never come from being any time.
var Closed = closed
