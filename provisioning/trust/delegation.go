package trust

import (
	"fmt"
	"path"
	"regexp"
	"strings"
	"time"
)

// Roles of a repository, in the order they are signed.
const (
	RoleRoot      = "root"
	RoleTargets   = "targets"
	RoleSnapshot  = "snapshot"
	RoleTimestamp = "timestamp"
)

// RoleAgent signs the agents of production.
const RoleAgent = "agent/prod"

const day = 24 * time.Hour

// life is how long the metadata of a role is good for.
func life(role string) time.Duration {
	switch {
	case role == RoleRoot, role == RoleTargets:
		return 365 * day
	case role == RoleSnapshot:
		return 14 * day
	case role == RoleTimestamp:
		return 7 * day
	case strings.HasSuffix(role, "/beta") && strings.HasPrefix(role, "os/"):
		return 30 * day
	}
	return 90 * day
}

func topRole(role string) bool {
	return role == RoleRoot || role == RoleTargets || role == RoleSnapshot || role == RoleTimestamp
}

// roleForm is what the top-level targets role may delegate to: agent/prod,
// os/{model}/{prod|beta} and ops/{tenant}.
var roleForm = regexp.MustCompile(`^(?:agent/prod|os/[A-Za-z0-9][A-Za-z0-9._+-]*/(?:prod|beta)|ops/[a-z0-9][a-z0-9._-]*)$`)

// Delegated reports whether targets may delegate to a role of this name.
func Delegated(role string) bool { return roleForm.MatchString(role) && brief(role) }

// paths are the targets that a delegated role may sign, as patterns of TUF,
// whose * stops at a slash.
func paths(role string) ([]string, error) {
	if !Delegated(role) {
		return nil, fmt.Errorf("role %.80q: delegations are agent/prod, os/MODEL/prod, os/MODEL/beta and ops/TENANT, with what a path may not hold replaced by _", role)
	}
	part := strings.Split(role, "/")
	switch part[0] {
	case "agent":
		return []string{"agent/*/*", "boot/*/agent_*"}, nil
	case "os":
		return []string{role + "/*/*", "boot/" + part[1] + "/os_" + part[1] + "_" + part[2] + "_*"}, nil
	}
	return []string{role + "/*/*/*"}, nil
}

// RoleOf returns the role that signs a target. Paths that no delegation is for,
// which repositories had before there were any, are those of targets itself.
func RoleOf(target string) string {
	part := strings.Split(target, "/")
	role := RoleTargets
	switch {
	case part[0] == "agent" && len(part) == 3:
		role = RoleAgent
	case part[0] == "os" && len(part) == 5:
		role = path.Join(part[:3]...)
	case part[0] == "ops" && len(part) == 5:
		role = path.Join(part[:2]...)
	case part[0] == "boot" && len(part) == 3 && strings.HasPrefix(part[2], "agent_"):
		role = RoleAgent
	case part[0] == "boot" && len(part) == 3:
		for _, channel := range []string{"prod", "beta"} {
			if strings.HasPrefix(part[2], "os_"+part[1]+"_"+channel+"_") {
				role = "os/" + part[1] + "/" + channel
			}
		}
	}
	if !Delegated(role) {
		return RoleTargets
	}
	return role
}

// MetadataFile names the file of a role's metadata in the metadata folder. The
// slash of a delegated role is written %2F, as other implementations of TUF do.
func MetadataFile(role string, version int64) string {
	if role == RoleTimestamp {
		return "timestamp.json"
	}
	return fmt.Sprintf("%d.%s", version, roleFile(role))
}
