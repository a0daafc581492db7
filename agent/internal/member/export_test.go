package member

// Sleep is how long Run sleeps before it looks at the clock again.
var Sleep = sleep
