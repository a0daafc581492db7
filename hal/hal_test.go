package hal_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/tillward/tillward/hal"
)

func TestErrorIs(t *testing.T) {
	err := error(&hal.Error{Code: "E_OFFLINE", Op: "print", Err: errors.New("no route")})
	if !errors.Is(err, &hal.Error{Code: "E_OFFLINE"}) || errors.Is(err, &hal.Error{Code: "E_TIMEOUT"}) {
		t.Errorf("%v does not match its code alone", err)
	}
}

func TestUnknownClaim(t *testing.T) {
	if err := hal.CheckOptions(hal.Config{ID: "x", Claim: "grab"}); !errors.Is(err, &hal.Error{Code: "E_ILLEGAL"}) {
		t.Errorf("got %v, want E_ILLEGAL", err)
	}
}

func TestUnknownOption(t *testing.T) {
	err := hal.CheckOptions(hal.Config{ID: "x", Options: map[string]string{"colour": "red"}}, "reader")
	if err == nil || !strings.Contains(err.Error(), "colour") || !strings.Contains(err.Error(), "reader") {
		t.Errorf("got %v, want an error naming the option and what is known", err)
	}
}
