package hal_test

import (
	"errors"
	"testing"

	"github.com/tillward/tillward/hal"
)

func TestErrorIs(t *testing.T) {
	err := error(&hal.Error{Code: "E_OFFLINE", Op: "print", Err: errors.New("no route")})
	if !errors.Is(err, &hal.Error{Code: "E_OFFLINE"}) || errors.Is(err, &hal.Error{Code: "E_TIMEOUT"}) {
		t.Errorf("%v does not match its code alone", err)
	}
}
