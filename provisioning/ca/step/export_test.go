package step

// Answer reads what a CA said.
var Answer = answer
