package catalog

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/semver"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/trust"
)

// number is what a version looks like.
var number = regexp.MustCompile(`^[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}(-[0-9A-Za-z.-]{1,48})?$`)

// maxID is how long the id of a release may be, which is the target of an offer.
const maxID = 256

// releases groups targets by their folder, which is {component}/{version} as
// signed. Boot references are no releases: nothing installs them.
func releases(targets []trust.Target) ([]fleet.Release, error) {
	byID := make(map[fleet.ReleaseID]*fleet.Release)
	for _, t := range targets {
		if t.Custom.Class == trust.ClassBoot {
			continue
		}
		one, err := releaseOf(t)
		if err != nil {
			return nil, err
		}
		r := byID[one.ID]
		if r == nil {
			byID[one.ID] = &one
			continue
		}
		if r.Class != one.Class {
			return nil, fmt.Errorf("release %.100q is of class %s in one target and %s in another; make releases with tillward-provision: %w", r.ID, r.Class, one.Class, fleet.ErrInvalid)
		}
		// It fits whom one of its targets fits, needs what one of them needs.
		if len(r.Models) == 0 || len(one.Models) == 0 {
			r.Models = nil
		} else {
			r.Models = append(r.Models, one.Models...)
		}
		for component, v := range one.Requires {
			if have, ok := r.Requires[component]; ok && have != v {
				return nil, fmt.Errorf("release %.100q requires %.64s %.64q in one target and %.64q in another: %w", r.ID, component, have, v, fleet.ErrInvalid)
			}
			if r.Requires == nil {
				r.Requires = map[string]string{}
			}
			r.Requires[component] = v
		}
		r.Withdrawn = r.Withdrawn || one.Withdrawn
		r.Targets = append(r.Targets, one.Targets...)
	}
	var out []fleet.Release
	for _, r := range byID {
		slices.Sort(r.Models)
		r.Models = slices.Compact(r.Models)
		slices.SortFunc(r.Targets, func(a, b fleet.Target) int { return strings.Compare(a.Path, b.Path) })
		out = append(out, *r)
	}
	slices.SortFunc(out, func(a, b fleet.Release) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}

// releaseOf is the release of one target.
func releaseOf(t trust.Target) (fleet.Release, error) {
	id := path.Dir(t.Path)
	component, version := path.Dir(id), path.Base(id)
	part := strings.Split(component, "/")
	r := fleet.Release{
		ID: fleet.ReleaseID(id), Component: component, Class: t.Custom.Class, Version: version, Models: slices.Clone(t.Custom.Models), Requires: maps.Clone(t.Custom.Requires),
		Withdrawn: t.Custom.Withdrawn, Targets: []fleet.Target{{Path: t.Path, SHA256: t.SHA256, Length: t.Length}}, PublishedAt: time.Now(),
	}
	bad := func(format string, args ...any) (fleet.Release, error) {
		return r, fmt.Errorf("target %.100q %s; make releases with tillward-provision: %w", t.Path, fmt.Sprintf(format, args...), fleet.ErrInvalid)
	}
	switch {
	case version != t.Custom.Version:
		return bad("says that it is version %.64q", t.Custom.Version)
	case !number.MatchString(version) || !semver.IsValid("v"+version):
		return bad("has no version of the form 1.2.3")
	case len(version) > wire.MaxName || len(id) > maxID: // no offer could name it
		return bad("has a version of more than %d bytes or a folder of more than %d", wire.MaxName, maxID)
	case part[0] == "ops" && len(part) == 3:
		if !slices.Contains([]string{trust.ClassApp, trust.ClassConfig, trust.ClassScript}, r.Class) {
			return bad("is of class %.32q; what an operator releases is app, config or script", r.Class)
		}
		r.Tenant = fleet.TenantID(part[1])
	case part[0] == trust.ClassOS && len(part) == 3, len(part) == 1:
		if r.Class != part[0] {
			return bad("says that it is of class %.32q", r.Class)
		}
	default:
		return bad("lies in no component: those are agent, os/MODEL/CHANNEL and ops/TENANT/NAME")
	}
	return r, nil
}
