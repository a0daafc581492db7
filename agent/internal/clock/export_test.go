package clock

// Rests is how a clock is judged.
var Rests = rests
