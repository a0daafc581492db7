package agent

import (
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"

	"github.com/tillward/tillward/provisioning/durable"
)

// runs is runs.json: whether the agent runs, and how often it was started
// without having ended. It is beside the books: it counts when they are lost,
// too.
type runs struct {
	Running bool   `json:"running"`
	Crashes uint64 `json:"crashes"`
}

// beginRun counts the start when no orderly end came before it.
func (a *Agent) beginRun() {
	var r runs
	b, err := os.ReadFile(a.file("runs.json"))
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		a.log.Warn("count of crashes begins anew", slog.Any("err", err))
	}
	if r.Running {
		r.Crashes++
	}
	r.Running, a.crashes = true, r.Crashes
	a.keepRuns(r)
}

func (a *Agent) endRun() { a.keepRuns(runs{Crashes: a.crashes}) }

func (a *Agent) keepRuns(r runs) {
	b, err := json.Marshal(r)
	if err == nil {
		err = durable.Replace(a.file("runs.json"), b)
	}
	if err != nil {
		a.log.Warn("count of crashes", slog.Any("err", err))
	}
}
