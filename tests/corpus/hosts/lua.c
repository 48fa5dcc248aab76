/* CVE-2022-33099: an error message stayed on the stack below its final form, which in the end was one slot too many.
 * The slots of a function that failed can be seen from a message handler: is the raw message among them? */
#include <string.h>

#include "host.h"

#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>

static const char PROGRAM[] =
	"local function fail() local x; return x + 1 end\n"
	"local seen = 'FIXED'\n"
	"local function handle(message)\n"
	"  if not message:find(':%d+: attempt to perform arithmetic') then return 'ODD: ' .. message end\n"
	"  local n = 1\n"
	"  while true do\n"
	"    local name, value = debug.getlocal(2, n)\n"
	"    if not name then return seen end\n"
	"    if type(value) == 'string' and value:find('^attempt to perform') then seen = 'VULNERABLE' end\n"
	"    n = n + 1\n"
	"  end\n"
	"end\n"
	"local function call() local result = fail(); return result end\n"
	"local _, result = xpcall(call, handle)\n"
	"return result\n";

static const char *verdict(void)
{
	static char seen[200];
	lua_State *state = luaL_newstate();

	luaL_openlibs(state);
	luaL_dostring(state, PROGRAM);
	strncpy(seen, lua_tostring(state, -1), sizeof seen - 1);
	lua_close(state);
	return seen;
}
