package store

import "github.com/tillward/tillward/cloud/internal/fleet"

// The domain's own words, short here.
type (
	Intake        = fleet.Intake
	Report        = fleet.Report
	Outcome       = fleet.Outcome
	DeviceFilter  = fleet.DeviceFilter
	DevicePatch   = fleet.DevicePatch
	SeriesInfo    = fleet.SeriesInfo
	Point         = fleet.Point
	CommandFilter = fleet.CommandFilter
	ChainReport   = fleet.ChainReport
	Summary       = fleet.Summary
	Listing       = fleet.Listing
	ExecutionStep = fleet.ExecutionStep
	CommandEnd    = fleet.CommandEnd
)
