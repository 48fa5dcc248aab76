/* CVE-2026-7168: what was kept for digest authentication at one proxy was sent to the next one. Two proxies (their ports
 * are in the environment) are asked one after the other through one handle; the second says what it was told. */
#include <string.h>

#include "host.h"

#include <curl/curl.h>

static char body[64];

static size_t store(char *data, size_t size, size_t count, void *unused)
{
	size_t length = size * count, room = sizeof body - 1 - strlen(body);

	(void)unused;
	strncat(body, data, length < room ? length : room);
	return length;
}

static CURLcode ask(CURL *handle, const char *port)
{
	char proxy[64];

	snprintf(proxy, sizeof proxy, "http://127.0.0.1:%s", getenv(port));
	curl_easy_setopt(handle, CURLOPT_PROXY, proxy);
	body[0] = 0;
	return curl_easy_perform(handle);
}

static const char *verdict(void)
{
	CURL *handle = curl_easy_init();
	CURLcode result;

	curl_easy_setopt(handle, CURLOPT_URL, "http://site.example/");
	curl_easy_setopt(handle, CURLOPT_PROXYUSERPWD, "user:secret");
	curl_easy_setopt(handle, CURLOPT_PROXYAUTH, CURLAUTH_DIGEST);
	curl_easy_setopt(handle, CURLOPT_WRITEFUNCTION, store);
	result = ask(handle, "FIRST_PROXY");
	if (result == CURLE_OK && strcmp(body, "LOGGED IN") == 0)
		result = ask(handle, "SECOND_PROXY");
	curl_easy_cleanup(handle);
	return result == CURLE_OK ? body : curl_easy_strerror(result);
}
